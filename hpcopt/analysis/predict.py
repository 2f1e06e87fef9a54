"""What an iteration of a job takes on ranks that are not there: time, bytes and memory, from a measured cost model.

The model is built and the training set is read on this one process; then the closed forms of ``hpcopt.costs`` and the
rates of a measurement say the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.config import Job
from hpcopt.costs.facts import case_of
from hpcopt.costs.layers import Layer, layers_of, network_layers
from hpcopt.costs.machine import Machine
from hpcopt.costs.messages import Message, Replicated, Sharded, Spread, VariableBlocks
from hpcopt.costs.methods import METHODS, Case, has_factors, messages_of
from hpcopt.costs.network import Grid
from hpcopt.costs.work import ITEMSIZES, Worker, evaluations_of, part_of
from hpcopt.data.load import load
from hpcopt.errors import UsageError
from hpcopt.layout.grid import ProcessGrid
from hpcopt.layout.network import GridLayout, network_grid
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.network.explicit import bytes_each
from hpcopt.parallel_options import ParallelOptions
from hpcopt.solvers.registry import make_solver
from hpcopt.train.job_checks import check_before_data, has_local_phase
from hpcopt.train.objectives import make_objective

PRODUCTS = 21
"""Of conjugate gradients in a step of Newton without preconditioner: what ``benchmarks/newton/combination.py`` took in
the mean at the default tolerance."""

ASSUMPTIONS = (
    "An iteration in the middle of a run whose step is accepted; local phases take all their trials, no quorum ends "
    "them. Evaluations, records and checkpoints are not counted.",
    "All ranks have as many samples. At every call ranks wait for each other as long as they were measured to do on a "
    "host after as much computing; long gradients and long sharded variables are counted as if their messages did not "
    "overlap with the evaluation.",
    "Calls cost what they were measured to cost; between and beyond by ceil(log2 p)(alpha + n beta) or 2 ceil(log2 p) "
    "alpha + 2 (p - 1)/p n beta, whichever is less (recursive doubling, Rabenseifner).",
    "Products of matrices and memory traffic go at the rates measured with as many ranks of a host busy; ranks beyond "
    "its cores share them.",
)


@dataclass(frozen=True)
class Prediction:
    """Of one number of ranks.

    Attributes:
        ranks: of the job.
        hosts: on which they are.
        seconds: of an iteration.
        compute: seconds of it in which a rank computes.
        communication: seconds of it in calls of MPI.
        waiting: seconds of it until the last rank comes to a call.
        calls: of MPI in an iteration.
        bytes: of a rank's buffers in these.
        memory: bytes of a rank.
        messages: kind, label, ranks, calls, bytes and seconds of each kind of call.
    """

    ranks: int
    hosts: int
    seconds: float
    compute: float
    communication: float
    waiting: float
    calls: float
    bytes: float
    memory: float
    messages: list[dict[str, Any]]


@dataclass(frozen=True)
class Subject:
    """A job on one process.

    Attributes:
        job: with its data, method and model.
        solver: the method.
        objective: the problem, whole.
        layers: of the model.
        batch: samples of a batch.
        per_epoch: batches of an epoch.
        features: numbers of a sample with its target.
        state: bytes of the method's vectors, and of what else it keeps.
    """

    job: Job
    solver: Any
    objective: DataParallelObjective
    layers: Sequence[Layer]
    batch: int
    per_epoch: int
    features: int
    state: tuple[float, float]


def subject_of(job: Job) -> Subject:
    """Read the training set and build the model. On one process.

    Raises:
        UsageError: the job is not one that formulas are for, or cannot be run.
    """
    if job.solver.name not in METHODS:
        known = ", ".join(sorted(METHODS))
        raise UsageError(f"there is no cost model of solver.name = {job.solver.name!r}; there is one of {known}.")
    parallel = job.parallel
    if parallel.mapping != "grid" or (parallel.data > 1 and not has_local_phase(job)):
        raise UsageError(
            "there is a cost model of networks that are cut over one grid, not of parallel.mapping = "
            f"{parallel.mapping!r} with parallel.data = {parallel.data}. Predict with the grid, or measure a short run."
        )
    comm = Communicator()
    data = load(job.data, comm, job.run.seed)
    alone = replace(job, parallel=ParallelOptions())
    objective, _ = make_objective(alone, data, comm, torch.device("cpu"))
    assert isinstance(objective, DataParallelObjective)
    solver = make_solver(job.solver.name, job.solver.options, 1.0)
    layers = layers_of(objective.shard.module, objective.shard.inputs[:2])
    total, size = objective.samples, job.data.batch_size
    per_epoch = 1 if size is None else -(-total // size)
    batch = total if per_epoch == 1 else round(total / per_epoch * (1 + job.data.overlap))
    features = objective.shard.inputs[0].numel() + max(1, objective.shard.targets[0].numel())
    return Subject(job, solver, objective, layers, batch, per_epoch, features, _state(solver, objective))


def predict(subject: Subject, machine: Machine, ranks: int, on_host: int, trials: float | None = None) -> Prediction:
    """What an iteration takes.

    Args:
        subject: the job.
        machine: the measurement.
        ranks: of the job.
        on_host: most of them on a host.
        trials: points that a line search tries, or products of conjugate gradients; by default 1, or ``PRODUCTS``.

    Raises:
        UsageError: the job does not fit so many ranks, or the measurement cannot say.
    """
    job, solver = subject.job, subject.solver
    _check(subject, machine, ranks)
    case = case_of(subject.objective, solver, subject.batch, per_epoch=subject.per_epoch)
    spread, worker, memory = _spread(subject, ranks, case)
    if isinstance(spread, VariableBlocks):
        case = replace(case, columns=spread.grid.columns)
    if isinstance(spread, Grid):
        case = replace(case, factors=None, factor_sweeps=spread.outputs if spread.explicit else 0)
    conjugate = job.solver.name == "newton" and not has_factors(solver, spread, case)
    expected = min(PRODUCTS, solver.cg_iterations) if conjugate else 1.0
    case = replace(case, trials=expected if trials is None else trials)
    messages = messages_of(job.solver.name, solver, spread, case)
    here = min(on_host, ranks)
    taken = [machine.seconds(message, on_host) for message in messages]
    rates, calls = machine.rates_of(here), math.fsum(message.calls for message in messages if message.ranks > 1)
    compute = worker.seconds(evaluations_of(job.solver.name, solver, case), case, rates)
    waiting = rates.waiting(compute, calls)
    return Prediction(
        ranks=ranks,
        hosts=math.ceil(ranks / on_host),
        seconds=compute + math.fsum(taken) + waiting,
        compute=compute,
        communication=math.fsum(taken),
        waiting=waiting,
        calls=math.fsum(message.calls for message in messages),
        bytes=math.fsum(message.bytes for message in messages),
        memory=memory,
        messages=_rows(messages, taken),
    )


def _check(subject: Subject, machine: Machine, ranks: int) -> None:
    """Refuse what a run on so many ranks would refuse; that they are more than the samples is only said."""
    check_before_data(subject.job, ranks)
    if ranks > subject.objective.samples:
        machine.unsure.add(
            f"More ranks than the {subject.objective.samples:,} samples of the training set are refused by hpcopt run: "
            "their figures only say where the method stops to gain."
        )


def _rows(messages: Sequence[Message], taken: Sequence[float]) -> list[dict[str, Any]]:
    """One row for each kind of call, the most expensive first."""
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    for message, seconds in zip(messages, taken, strict=True):
        key = (message.kind, message.label, message.ranks)
        row = rows.setdefault(
            key, dict(zip(("kind", "label", "ranks"), key, strict=True), calls=0.0, bytes=0.0, seconds=0.0)
        )
        row["calls"] += message.calls
        row["bytes"] += message.bytes
        row["seconds"] += seconds
    return sorted(rows.values(), key=lambda row: (-row["seconds"], row["label"]))


def _spread(subject: Subject, ranks: int, case: Case) -> tuple[Spread, Worker, float]:
    """How samples and variables are spread over so many ranks, what a rank computes, and the bytes it needs."""
    job, objective = subject.job, subject.objective
    itemsize, parallel = ITEMSIZES[job.run.precision], job.parallel
    if parallel.layout == "variables" and not has_local_phase(job):
        return _on_grid(subject, ranks)
    counts, samples = objective.shard.parameters.counts, subject.batch / ranks
    vectors, other = subject.state
    micro = min(samples, job.loss.micro_batch or samples)
    spread: Spread = Replicated(counts, ranks, itemsize, samples == micro)
    held = objective.samples / ranks
    share = 1.0
    if parallel.layout == "variables":
        spread = VariableBlocks(counts, ranks, itemsize, parallel.data, ranks - 1)
        held = objective.samples / spread.grid.rows
        micro = min(subject.batch / spread.grid.rows, job.loss.micro_batch or subject.batch)
    elif parallel.state == "sharded":
        spread, share = Sharded(counts, ranks, itemsize), 1 / ranks
    numbers, cost = objective.size * share, objective.work.curvature_cost
    per_sample = subject.features, objective.outputs
    worker = Worker(subject.layers, samples, numbers, job.run.precision, cost, ranks, *per_sample)
    activations = 2 * micro * math.fsum(layer.written for layer in subject.layers)
    # w gathered or in the module, the gradient and its spare, besides the method's own.
    memory = itemsize * (3 * objective.size + held * subject.features + activations) + share * vectors + other
    return spread, worker, memory


def _on_grid(subject: Subject, ranks: int) -> tuple[Grid, Worker, float]:
    job, solver = subject.job, subject.solver
    sizes = [layer.inputs for layer in subject.layers if layer.rows] + [subject.objective.outputs]
    wanted, itemsize = job.parallel.grid, ITEMSIZES[job.run.precision]
    layout = GridLayout(sizes, network_grid(sizes, ranks) if wanted is None else ProcessGrid(*wanted))
    explicit = hasattr(solver, "direction") and (solver.direction == "block" or job.parallel.jacobian != "implicit")
    part = part_of(solver, subject.batch) if hasattr(solver, "subset") else 1.0
    spread = Grid(
        *(layout, 0, itemsize, subject.batch, math.ceil(part * subject.batch)),
        splits=subject.objective.classification,
        explicit=explicit,
        micro_batch=job.loss.micro_batch,
    )
    blocks = [(held.inputs.count, held.outputs.count) for held in layout.blocks(0)]
    gradient = 6 * sum(u * v for u, v in blocks) - 2 * blocks[0][0] * blocks[0][1]
    product = 8 * sum(u * v for u, v in blocks) - 4 * blocks[0][0] * blocks[0][1]
    if explicit:
        product = 4 * sum(v * (u + spread.outputs) for u, v in blocks)
    each = bytes_each(layout, itemsize) if explicit else 0
    local = network_layers(blocks), subject.batch, layout.size(0), job.run.precision, product / gradient
    worker = Worker(*local, outputs=blocks[-1][1], kept=subject.batch * each)
    vectors = subject.state[0] * layout.size(0) / subject.objective.size
    samples = subject.objective.samples * (blocks[0][0] + blocks[-1][1])
    widths = min(subject.batch, spread.piece) * sum(u + v for u, v in blocks)
    return spread, worker, vectors + itemsize * (2 * layout.size(0) + samples + widths) + spread.samples * each


def _state(solver: Any, objective: DataParallelObjective) -> tuple[float, float]:
    """Bytes of vectors of n numbers in the state of a method, and of what else it keeps."""
    vectors = other = 0.0
    for key, value in solver.init(objective).items():
        if isinstance(value, torch.Tensor):
            if value.dim() and value.shape[-1] == objective.size and not key.startswith("factor"):
                vectors += value.nbytes
            else:
                other += value.nbytes
    return vectors, other
