"""Train an objective with a solver: the entry for Python, and what ``hpcopt run`` does once its job file is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hpcopt.data.batches import BatchPlan
from hpcopt.errors import UsageError
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.solvers.solver import Solver
from hpcopt.train.evaluation import Evaluator
from hpcopt.train.loop import Criteria, Listener, Result, TrainingLoop
from hpcopt.train.output import RunOutput
from hpcopt.train.sampler import Sampler


def minimize(
    objective: DataParallelObjective,
    solver: Solver,
    *,
    epochs: float | None = None,
    iterations: int | None = None,
    batch: int | str = "full",
    overlap: float = 0.0,
    seed: int = 0,
    test: tuple[torch.Tensor, torch.Tensor] | None = None,
    run_dir: str | Path | None = None,
    fresh: bool = False,
    evaluate_every: float = 1.0,
    train_loss: float | None = None,
    test_accuracy: float | None = None,
    seconds: float | None = None,
    give_up_after: int = 20,
    listeners: Sequence[Listener] = (),
) -> Result:
    """Train the model of ``objective``; it holds the trained parameters afterwards. *Collective*.

    Args:
        objective: the model, the loss and this rank's shard of the samples.
        solver: one of ``hpcopt.solvers``.
        epochs: passes over the training set (default 10), or
        iterations: number of steps.
        batch: samples of a batch over all ranks, or "full".
        overlap: fraction of a batch that it shares with the next one.
        seed: of the data order.
        test: this rank's test inputs and targets.
        run_dir: directory for record, log and status; None leaves nothing behind.
        fresh: move an earlier run in that directory aside.
        evaluate_every: epochs between evaluations.
        train_loss: stop when the mean loss over the training set is this low.
        test_accuracy: stop when this fraction of the test set is classified right.
        seconds: stop after this time.
        give_up_after: iterations in a row that met a number that is not finite.
        listeners: told of every iteration and evaluation, on rank 0.

    Raises:
        UsageError: on all ranks, when the options do not fit together or the directory cannot be used.
    """
    sampler = Sampler(plan_batches(objective, batch, overlap, seed), objective.shard.inputs.device)
    steps = iterations if iterations is not None else max(1, round((epochs or 10) * sampler.per_epoch))
    criteria = Criteria(
        iterations=steps,
        evaluate_every=max(1, round(evaluate_every * sampler.per_epoch)),
        train_loss=train_loss,
        test_accuracy=test_accuracy,
        seconds=seconds,
        give_up_after=give_up_after,
    )
    horizon = {"horizon_epochs": steps / sampler.per_epoch}
    if getattr(solver, "horizon_epochs", 0.0) is None:
        solver = replace(solver, **horizon)  # type: ignore[type-var]
    facts: dict[str, Any] = {
        "solver": type(solver).__name__.lower(),
        "model": type(objective.shard.module).__name__,
        "data": None,
        "task": "classification" if is_classification(objective) else "regression",
    }
    path = Path(run_dir) if run_dir is not None else None
    output = RunOutput(objective.comm, path, fresh=fresh, facts=facts | run_facts(objective, solver))
    return train(objective, solver, sampler, test, criteria, output, listeners)


def train(
    objective: DataParallelObjective,
    solver: Solver,
    sampler: Sampler,
    test: tuple[torch.Tensor, torch.Tensor] | None,
    criteria: Criteria,
    output: RunOutput,
    listeners: Sequence[Listener] = (),
) -> Result:
    """Run the loop and leave its traces in ``output``, whatever happens. *Collective*."""
    try:
        evaluator = Evaluator(objective, test, classification=is_classification(objective))
        heard = [*output.listeners, *(listeners if objective.comm.rank == 0 else ())]
        loop = TrainingLoop(objective, solver, sampler, sampler.per_epoch, evaluator, criteria, heard)
        result = loop.run()
    except BaseException as error:
        output.fail(error)
        raise
    output.finish(result)
    return result


def plan_batches(objective: DataParallelObjective, batch: int | str, overlap: float, seed: int) -> BatchPlan:
    """The batches of samples that lie on the ranks in contiguous blocks, in the order of the ranks. *Collective*."""
    if isinstance(batch, str) and batch != "full":
        raise UsageError(f'batch = {batch!r} is not allowed; it must be a number of samples or "full"', collective=True)
    counts = objective.comm.allgather_objects(len(objective.shard.inputs))
    start, rank = sum(counts[: objective.comm.rank]), objective.comm.rank
    with objective.comm.together("planning the batches"):
        return BatchPlan(sum(counts), start, counts[rank], None if isinstance(batch, str) else batch, seed, overlap)


def is_classification(objective: DataParallelObjective) -> bool:
    """Whether the targets are labels."""
    return not objective.shard.targets.is_floating_point()


def run_facts(objective: DataParallelObjective, solver: Solver) -> dict[str, Any]:
    """What status.json says of any run."""
    return {
        "layout": "data",
        "parameters": objective.size,
        "training_samples": objective.samples,
        "precision": str(objective.shard.parameters.dtype).removeprefix("torch."),
        "options": {k: v for k, v in vars(solver).items() if isinstance(v, (int, float, str, bool))},
    }
