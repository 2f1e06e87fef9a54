"""Train an objective with a solver: the entry for Python, and what ``hpcopt run`` does once its job file is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.config import CheckpointOptions, DebugOptions, RunOptions, StopOptions
from hpcopt.data.batches import BatchGrowth, BatchPlan
from hpcopt.errors import UsageError
from hpcopt.objective.fit import on
from hpcopt.objective.problem import Problem, Samples
from hpcopt.solvers.registry import SOLVERS
from hpcopt.solvers.solver import Solver
from hpcopt.train.evaluation import Evaluator
from hpcopt.train.keeper import CheckpointKeeper
from hpcopt.train.loop import TrainingLoop
from hpcopt.train.protocol import Criteria, Listener, Result
from hpcopt.train.restored import snapshot_from
from hpcopt.train.run.output import RunOutput
from hpcopt.train.run.requests import Requests
from hpcopt.train.sampler import Sampler
from hpcopt.train.tolerated import Tolerated
from hpcopt.train.watchdog import Watchdog

DEFAULT_EPOCHS = 10


def minimize(
    objective: Problem,
    solver: Solver,
    *,
    epochs: float | None = None,
    iterations: int | None = None,
    batch: int | str = "full",
    overlap: float = 0.0,
    batch_growth: float = 1.0,
    batch_growth_every: int = 3,
    batch_growth_tolerance: float = 0.01,
    seed: int = 0,
    test: tuple[torch.Tensor | np.ndarray, torch.Tensor | np.ndarray] | None = None,
    run_dir: str | Path | None = None,
    fresh: bool = False,
    evaluate_every: float = 1.0,
    train_loss: float | None = None,
    test_accuracy: float | None = None,
    seconds: float | None = None,
    give_up_after: int = 20,
    checkpoint: CheckpointOptions | None = None,
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
        batch_growth: what the batch is multiplied by, up to the whole set, when the training loss no longer falls.
        batch_growth_every: epochs between two looks at the training loss for that.
        batch_growth_tolerance: by how much it must have fallen for the batch to stay as it is.
        seed: of the data order.
        test: this rank's test inputs and targets; on all ranks or on none.
        run_dir: directory for record, log and status; None leaves nothing behind.
        fresh: move an earlier run in that directory aside.
        evaluate_every: epochs between evaluations.
        train_loss: stop when the mean loss over the training set is this low.
        test_accuracy: stop when this fraction of the test set is classified right.
        seconds: stop after this time.
        give_up_after: iterations in a row that met a number that is not finite.
        checkpoint: when to save into ``run_dir``, and whether a run that is there goes on from where it was saved,
            which it does by default. SIGUSR1 then saves and stops the run.
        listeners: told of every iteration and evaluation, on rank 0. One that raises is left out from then on.

    Raises:
        UsageError: on all ranks, when the options do not fit together or the directory cannot be used.
    """
    with objective.comm.together("checking the options"):
        stop = StopOptions(train_loss=train_loss, test_accuracy=test_accuracy, seconds=seconds)
        run = RunOptions(
            epochs=epochs, iterations=iterations, stop=stop, evaluate_every=evaluate_every, give_up_after=give_up_after
        )
        growth = BatchGrowth(batch_growth, batch_growth_every, batch_growth_tolerance)
    sampler = Sampler(plan_batches(objective, batch, overlap, seed), objective.model.device, growth)
    criteria = make_criteria(run)
    given = _test_set(test, objective, test_accuracy)
    if getattr(solver, "horizon_epochs", 0.0) is None:
        solver = replace(solver, horizon_epochs=horizon_epochs(criteria, sampler))  # type: ignore[type-var]
    path = Path(run_dir) if run_dir is not None else None
    options = checkpoint or CheckpointOptions()
    saves = path is not None and options.save
    with closing(Requests().listen() if saves else Requests()) as requests:
        output = RunOutput(
            objective.comm,
            path,
            fresh=fresh,
            checkpoint=options,
            facts=_problem_facts(objective, solver) | run_facts(objective, solver, criteria),
            understand=partial(snapshot_from, objective, solver, sampler),
        )
        return train(objective, solver, sampler, given, criteria, output, options, requests, listeners)


def train(
    objective: Problem,
    solver: Solver,
    sampler: Sampler,
    test: Samples | None,
    criteria: Criteria,
    output: RunOutput,
    checkpoint: CheckpointOptions,
    requests: Requests,
    listeners: Sequence[Listener] = (),
    watched: DebugOptions | None = None,
) -> Result:
    """Run the loop and leave its traces in ``output``, whatever happens. *Collective*.

    With ``watched`` a rank that falls silent is reported; only one run of a process at a time can be.
    """
    try:
        watched_path = output.path if objective.comm.rank == 0 and output.store is not None else None
        requests.watch(watched_path, checkpoint.limit_seconds)
        evaluator = Evaluator(objective, test)
        given = listeners if objective.comm.rank == 0 else ()
        heard = [*output.listeners, *(each if isinstance(each, Tolerated) else Tolerated(each) for each in given)]
        keeper = None
        if output.store is not None:
            keeper = CheckpointKeeper(
                objective, solver, sampler, output.store, checkpoint, requests, output.write_record
            )
        with _watchdog(objective.comm, output.path, watched) as begin:
            loop = TrainingLoop(objective, solver, sampler, evaluator, criteria, heard, keeper, begin)
            result = loop.run(output.snapshot)
    except BaseException as error:
        output.fail(error)
        raise
    output.finish(result)
    return result


@contextmanager
def _watchdog(comm: Communicator, path: Path | None, options: DebugOptions | None) -> Iterator[Callable[[str], object]]:
    """What to tell of the progress of this rank."""
    if path is None or options is None or not options.silence_seconds:
        yield lambda what: None
        return
    with Watchdog(path, comm.rank, comm.size, options.silence_seconds, options.abort_on_silence) as watchdog:
        yield watchdog.begin


def make_criteria(run: RunOptions, check_agreement: bool = False) -> Criteria:
    """The loop's criteria from the options of the run."""
    return Criteria(
        iterations=run.iterations,
        epochs=DEFAULT_EPOCHS if run.epochs is None else run.epochs,
        evaluate_every=run.evaluate_every,
        train_loss=run.stop.train_loss,
        test_accuracy=run.stop.test_accuracy,
        seconds=run.stop.seconds,
        give_up_after=run.give_up_after,
        check_agreement=check_agreement,
    )


def first_iterations(criteria: Criteria, sampler: Sampler) -> int:
    """Iterations of the run if its batches stay as they are at the start."""
    return criteria.iterations or sampler.begin().count(criteria.epochs)


def horizon_epochs(criteria: Criteria, sampler: Sampler) -> float:
    """Length of the run in epochs, where schedules end; of whole batches as they are at the start."""
    return first_iterations(criteria, sampler) / sampler.per_epoch


def method_name(solver: Solver) -> str:
    """The method's name in a job file; a class of the user's own goes by its own name."""
    own = type(solver).__name__
    return next((name for name, target in SOLVERS.items() if target.endswith(f":{own}")), own)


def plan_batches(objective: Problem, batch: int | str, overlap: float, seed: int) -> BatchPlan:
    """The batches of samples that lie on the ranks in contiguous blocks, in the order of the ranks. *Collective*.

    Raises:
        UsageError: on all ranks, when there can be no such batches.
    """
    if isinstance(batch, str) and batch != "full":
        raise UsageError(f'batch = {batch!r} is not allowed; it must be a number of samples or "full"', collective=True)
    start, count = objective.shards()
    with objective.comm.together("planning the batches"):
        size = None if isinstance(batch, str) else batch
        return BatchPlan(objective.samples, start, count, size, seed, overlap)


def _problem_facts(objective: Problem, solver: Solver) -> dict[str, Any]:
    """What status.json says of a run without a job file, whose data have no name."""
    return {
        "solver": method_name(solver),
        "model": objective.model.name,
        "data": None,
        "task": "classification" if objective.classification else "regression",
    }


def run_facts(objective: Problem, solver: Solver, criteria: Criteria) -> dict[str, Any]:
    """What status.json says of any run."""
    return {
        **objective.layout,
        "parameters": objective.parameters,
        "training_samples": objective.samples,
        "precision": str(objective.model.dtype).removeprefix("torch."),
        "planned": {
            "iterations": criteria.iterations,
            "epochs": criteria.epochs if criteria.iterations is None else None,
            "seconds": criteria.seconds,
        },
        "options": {k: v for k, v in vars(solver).items() if isinstance(v, (int, float, str, bool))},
    }


def _test_set(
    test: tuple[torch.Tensor | np.ndarray, torch.Tensor | np.ndarray] | None,
    objective: Problem,
    accuracy: float | None,
) -> Samples | None:
    """Test inputs and targets in the precision and on the device of the training samples. *Collective*.

    Raises:
        UsageError: on all ranks, when they do not belong together, or there are none in which an ``accuracy`` could be
            reached.
    """
    with objective.comm.together("checking the test set"):
        if accuracy is not None and (test is None or not objective.classification):
            raise UsageError(
                f"test_accuracy = {accuracy} can never be reached without a test set of classes; give one or drop it"
            )
        if test is not None and len(test[0]) != len(test[1]):
            raise UsageError(
                f"the test set has {len(test[0])} inputs but {len(test[1])} targets; every sample needs one of each"
            )
    if test is None:
        return None
    model = objective.model
    return on(test[0], model.dtype, model.device), on(test[1], model.dtype, model.device)
