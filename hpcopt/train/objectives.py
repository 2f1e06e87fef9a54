"""The objective that a job describes: who holds which samples and which variables."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.config import Job
from hpcopt.data.columns import by_columns
from hpcopt.data.dataset import DataSet, Part
from hpcopt.errors import UsageError
from hpcopt.layout.blocks import variable_grid
from hpcopt.layout.grid import ProcessGrid
from hpcopt.models.registry import build, make_options
from hpcopt.objective.augmentation import Augment, CropAndFlip
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.local import Pace
from hpcopt.objective.network.data import make_layout
from hpcopt.objective.network.objective import NetworkObjective
from hpcopt.objective.network.replicas import NetworkReplicas
from hpcopt.objective.problem import Problem, Samples
from hpcopt.objective.sharded import ShardedStateObjective
from hpcopt.objective.variable_blocks import VariableBlockObjective
from hpcopt.parallel_options import ParallelOptions
from hpcopt.solvers.newton import Newton
from hpcopt.solvers.registry import make_solver, option_names
from hpcopt.solvers.solver import Solver


def has_local_phase(job: Job) -> bool:
    """Whether the ranks work on their own between the reductions of the job's method."""
    return "local_iterations" in option_names(job.solver.name)


def shard_grid(job: Job, ranks: int) -> ProcessGrid | None:
    """The grid of ranks whose rows share samples while they are loaded; None when every rank has samples of its own.

    Raises:
        UsageError: the ranks do not form it, or the layout's options do not fit the method or the model.
    """
    parallel = job.parallel
    if parallel.layout != "variables":
        return None
    if has_local_phase(job):
        key = "grid" if parallel.grid is not None else "mapping"
        if parallel.grid is not None or parallel.mapping != "grid":
            raise UsageError(
                f"parallel.{key} = {getattr(parallel, key)!r} is for networks whose layers are cut over the ranks, but "
                f'solver.name = "{job.solver.name}" varies whole layers on each rank. Remove parallel.{key}; '
                "parallel.data says how many shards the samples have."
            )
        return variable_grid(ranks, parallel.data)
    replicas = variable_grid(ranks, parallel.data)
    if parallel.grid is not None and parallel.grid[0] * parallel.grid[1] != replicas.columns:
        raise UsageError(
            f"parallel.grid = {parallel.grid} does not fit {ranks} ranks with parallel.data = {parallel.data}: every "
            f"replica of the network is cut over ranks / parallel.data = {replicas.columns} of them, rows times "
            "columns. Leave parallel.grid out for the squarest that fits the network."
        )
    _check_network(job)
    return None


def check_blocks(parallel: ParallelOptions, solver: Solver) -> None:
    """Refuse directions by blocks, or a choice of the Jacobian, that the layout or the method does not have.

    Raises:
        UsageError: see above.
    """
    direction = getattr(solver, "direction", None)
    if parallel.jacobian != "explicit" and (direction is None or parallel.layout != "variables"):
        raise UsageError(
            f'parallel.jacobian = "{parallel.jacobian}" has no effect here: it is for solver.name = "newton" with '
            'parallel.layout = "variables". Use these, or remove parallel.jacobian.'
        )
    if direction == "block" and parallel.jacobian == "implicit":
        raise UsageError(
            'solver.direction = "block" needs the factors of the Jacobian, which parallel.jacobian = "implicit" does '
            'not make. Use parallel.jacobian = "explicit", or solver.direction = "full".'
        )
    if direction == "block" and parallel.layout != "variables":
        raise UsageError(
            f'solver.direction = "block" needs variables that are cut over the ranks, but parallel.layout = '
            f'"{parallel.layout}". Use parallel.layout = "variables", or solver.direction = "full".'
        )


def make_objective(
    job: Job, data: DataSet, comm: Communicator, device: torch.device, pace: Pace | None = None
) -> tuple[Problem, Samples | None]:
    """The objective, whose local phases keep the ``pace``, and the test set as its ranks hold it. *Collective*.

    Raises:
        UsageError: on all ranks, when model, data and layout do not fit together.
    """
    if job.parallel.layout == "variables" and not has_local_phase(job):
        return _network(job, data, comm, device, pace)
    precision = getattr(torch, job.run.precision)
    with comm.together("building the model"):
        model = build(job.model.name, job.model.options, data.input_shape, data.outputs, job.run.seed)
    model.to(device=device, dtype=precision)
    test = _on(data.test, precision, device) if data.test else None
    given = (model, loss_name(job, data), *_on(data.train, precision, device), comm)
    make: Callable[..., DataParallelObjective] = DataParallelObjective
    if job.parallel.layout == "variables":
        make = partial(VariableBlockObjective, shards=job.parallel.data, key="parallel.data")
    objective = make(
        *given,
        weight_decay=job.loss.weight_decay,
        decay_norms=job.loss.decay_norms,
        micro_batch=job.loss.micro_batch,
        seed=job.run.seed,
        augment=_augmentation(job, data.train, device),
    )
    if job.parallel.state == "sharded":
        return ShardedStateObjective(objective, job.run.seed), test
    objective.local.pace = pace
    return objective, test


def _augmentation(job: Job, train: Part, device: torch.device) -> Augment | None:
    """What the job does to the training samples of every batch."""
    return None if job.data.augment == "none" else CropAndFlip(job.run.seed, train.start, train.count, device)


def loss_name(job: Job, data: DataSet) -> str:
    """The loss of the job; cross-entropy for classes and squared for numbers unless it says otherwise."""
    if job.loss.name != "auto":
        return job.loss.name
    return "cross_entropy" if data.task == "classification" else "squared"


def _network(
    job: Job, data: DataSet, comm: Communicator, device: torch.device, pace: Pace | None
) -> tuple[Problem, Samples | None]:
    """A cut network on all ranks, or replicas of it, each of which has the samples that its ranks loaded."""
    parallel, precision = job.parallel, getattr(torch, job.run.precision)
    options = make_options("mlp", job.model.options)
    sizes = [int(np.prod(data.input_shape)), *options.widths, data.outputs]
    tests: list[Samples] = []

    def make(ranks: Communicator) -> NetworkObjective:
        """The network on ``ranks``, which may be all or those of one replica. *Collective*."""
        with ranks.together("laying out the network"):
            layout = make_layout(sizes, parallel.grid, ranks.size, parallel.mapping, parallel.split)
        train = _on(by_columns(data.train, layout, ranks), precision, device)
        if data.test:
            tests.append(_on(by_columns(data.test, layout, ranks), precision, device))
        return NetworkObjective(
            *(sizes, options.activation, loss_name(job, data), *train, ranks, parallel.grid),
            mapping=parallel.mapping,
            split=parallel.split,
            pipeline=parallel.pipeline,
            weight_decay=job.loss.weight_decay,
            seed=job.run.seed,
            init=options.init,
            micro_batch=job.loss.micro_batch,
            instances=_instances(job, data),
            jacobian=_jacobian(job),
        )

    replicas = parallel.data
    objective = make(comm) if replicas == 1 else NetworkReplicas(comm, replicas, make, "parallel.data")
    objective.pace = pace
    return objective, tests[0] if tests else None


def _jacobian(job: Job) -> str:
    """How products with the Jacobian are made; its factors take as many sweeps as there are outputs, to be used often.

    So they are for Newton: what other methods want to know of the curvature is a product or two.
    """
    if "direction" not in option_names(job.solver.name):
        return "implicit"
    return "explicit" if job.solver.options.get("direction") == "block" else job.parallel.jacobian


def _instances(job: Job, data: DataSet) -> int | None:
    """Most instances of a replica in a linearisation, where the method says so."""
    solver, batch = make_solver(job.solver.name, job.solver.options, 1.0), data.train.total
    if not isinstance(solver, Newton):
        return None
    if job.data.batch_size is not None and job.data.growth.factor == 1:
        batch = min(batch, math.ceil(job.data.batch_size * (1 + job.data.overlap)))
    size = solver.subset_size(batch)
    # A replica may have two more than its share of a subset.
    return min(size, math.ceil(size / job.parallel.data) + 2)


def _check_network(job: Job) -> None:
    """Refuse a model that cannot be cut over the ranks."""
    name = job.model.name
    if name != "mlp":
        raise UsageError(
            f'parallel.layout = "variables" with solver.name = "{job.solver.name}" cuts a fully connected network over '
            f'the ranks, but model.name = "{name}". Use model.name = "mlp", or parallel.layout = "data".'
        )
    if job.data.augment != "none":
        raise UsageError(
            f'data.augment = "{job.data.augment}" needs whole images on every rank, but with parallel.layout = '
            f'"variables" and solver.name = "{job.solver.name}" the pixels are cut over the ranks. Remove '
            'data.augment, or use parallel.layout = "data".'
        )
    options = make_options(name, job.model.options)
    for key, allowed in (("activation", ("relu", "tanh", "sigmoid")), ("init", ("he", "xavier", "sparse"))):
        if getattr(options, key) not in allowed:
            raise UsageError(
                f'model.{key} = "{getattr(options, key)}" is not possible where the network is cut over the ranks '
                f'(parallel.layout = "variables" with solver.name = "{job.solver.name}"). Set it to one of '
                f'{", ".join(allowed)}, or use parallel.layout = "data".'
            )
    if options.dropout or not options.bias:
        raise UsageError(
            'a network that is cut over the ranks (parallel.layout = "variables") has biases and no dropout: remove '
            "model.dropout and model.bias."
        )


def _on(part: Part, precision: torch.dtype, device: torch.device) -> Samples:
    inputs, targets = torch.from_numpy(part.inputs), torch.from_numpy(part.targets)
    kind = precision if targets.is_floating_point() else targets.dtype
    return inputs.to(device=device, dtype=precision), targets.to(device=device, dtype=kind)
