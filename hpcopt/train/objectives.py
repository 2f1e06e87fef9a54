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
from hpcopt.models.registry import build, make_options
from hpcopt.objective.augmentation import Augment, CropAndFlip
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.local import Pace
from hpcopt.objective.network.data import make_layout
from hpcopt.objective.network.objective import NetworkObjective
from hpcopt.objective.network.replicas import NetworkReplicas
from hpcopt.objective.problem import Problem, Samples
from hpcopt.objective.sharded.objective import ShardedStateObjective
from hpcopt.objective.variable_blocks import VariableBlockObjective
from hpcopt.solvers.newton import Newton
from hpcopt.solvers.registry import make_solver, option_names
from hpcopt.train.job_checks import has_local_phase


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
            factors=parallel.factors,
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


def _on(part: Part, precision: torch.dtype, device: torch.device) -> Samples:
    inputs, targets = torch.from_numpy(part.inputs), torch.from_numpy(part.targets)
    kind = precision if targets.is_floating_point() else targets.dtype
    return inputs.to(device=device, dtype=precision), targets.to(device=device, dtype=kind)
