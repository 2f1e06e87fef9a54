"""From a checked job file to a finished run. *Collective*: all ranks call the same function with the same job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.config import Job, SolverTable
from hpcopt.data.dataset import DataSet
from hpcopt.data.load import load
from hpcopt.errors import UsageError
from hpcopt.objective.network.objective import NetworkObjective
from hpcopt.objective.network.replicas import NetworkReplicas
from hpcopt.solvers.registry import make_solver
from hpcopt.solvers.slimtrain import last_layer_of
from hpcopt.solvers.solver import Solver
from hpcopt.train.devices import choose_device, choose_sums, choose_transport, device_facts
from hpcopt.train.job_checks import check_before_data
from hpcopt.train.minimize import first_iterations, horizon_epochs, make_criteria, plan_batches, run_facts, train
from hpcopt.train.objectives import loss_name, make_objective
from hpcopt.train.pace import make_pace, skip
from hpcopt.train.protocol import Listener, Result
from hpcopt.train.restored import snapshot_from
from hpcopt.train.run.output import RunOutput
from hpcopt.train.run.requests import Requests
from hpcopt.train.sampler import Sampler


class PreparedJob:
    """A job whose data are loaded and whose model is built, ready to train. *Collective*.

    Everything a user can have got wrong in the job file is refused here, before the run directory is made.

    Args:
        job: the checked job file.
        comm: the ranks of the run; it is told how buffers of devices reach MPI.

    Raises:
        UsageError: on all ranks.
    """

    def __init__(self, job: Job, comm: Communicator) -> None:
        self.job, self.comm = job, comm
        comm.barriers = job.debug.barriers
        with comm.together("checking the method's options"):
            # What is wrong in the job is refused before the data are read.
            solver, grid = check_before_data(job, comm.size)
        device = choose_device(job.run.device, comm, job.run.share_gpu)
        self.transport = choose_transport(job.parallel.gpu_aware, device, comm)
        self.sums = choose_sums(job.parallel.nccl, device, comm)
        self.pace = make_pace(job.parallel, job.debug, comm, solver)
        self.data = load(job.data, comm, job.run.seed, grid)
        with comm.together("checking the job"):
            check_job(job, self.data)
        self.objective, self.test = make_objective(job, self.data, comm, device, self.pace)
        plan = plan_batches(self.objective, job.data.batch, job.data.overlap, job.run.seed)
        self.sampler = Sampler(plan, device, job.data.growth)
        self.criteria = make_criteria(job.run, job.debug.check_agreement)
        horizon = horizon_epochs(self.criteria, self.sampler)
        self.solver = make_solver(job.solver.name, job.solver.options, horizon)
        if job.solver.name == "slimtrain":
            last_layer_of(self.objective)

    def run(
        self,
        path: Path | None,
        *,
        fresh: bool = False,
        requests: Requests | None = None,
        listeners: Sequence[Listener] = (),
        announce: Callable[[int], object] = lambda _: None,
        watched: bool = False,
    ) -> Result:
        """Train, leaving record, status and checkpoints in the directory ``path``. *Collective*.

        Args:
            path: the run directory; None leaves nothing behind.
            fresh: move an earlier run in that directory aside; otherwise it goes on.
            requests: who may ask the run to save and stop.
            watched: report a rank that falls silent; for a process that makes one run.
            listeners: told of every iteration and evaluation.
            announce: called with the iteration after which an earlier run goes on.
        """
        about_rank = {
            "threads": torch.get_num_threads(),
            "mpi_buffers": self.transport,
            "large_sums": self.sums,
            **device_facts(self.objective.model.device, self.objective.model.dtype),
            "samples": self.objective.shards()[1],
        }
        options = self.job.checkpoint
        output = RunOutput(
            self.comm,
            path,
            fresh=fresh,
            checkpoint=options,
            job=self.resolved(),
            facts=self._facts(),
            rank_facts=about_rank,
            understand=partial(snapshot_from, self.objective, self.solver, self.sampler),
        )
        if output.snapshot is not None:
            skip(self.pace, output.snapshot.standing.iterations)
            announce(output.snapshot.standing.iterations)
        parts = (self.objective, self.solver, self.sampler, self.test, self.criteria)
        result = train(*parts, output, options, requests or Requests(), listeners, self.job.debug if watched else None)
        if self.pace is not None:
            self.pace.close()
        return result

    def length(self) -> tuple[float, str]:
        """How long the run may last, and the unit: "iteration", or "epoch" where batches may grow."""
        if self.sampler.grows and self.criteria.iterations is None:
            return self.criteria.epochs, "epoch"
        return first_iterations(self.criteria, self.sampler), "iteration"

    def resolved(self) -> Job:
        """The job with the method's defaults filled in."""
        return replace(self.job, solver=SolverTable(self.job.solver.name, solver_options(self.solver)))

    def _facts(self) -> dict[str, Any]:
        job, data = self.job, self.data
        names = {"name": job.run.name, "solver": job.solver.name, "model": job.model.name, "data": data.name}
        extra = {"task": data.task, "data_facts": data.facts, "loss": loss_name(job, data)}
        if isinstance(self.objective, (NetworkObjective, NetworkReplicas)) and hasattr(self.solver, "direction"):
            extra["jacobian"] = self.objective.jacobian
        general = run_facts(self.objective, self.solver, self.criteria)
        return {**names, **extra, "epoch_steps": self.sampler.per_epoch, **general}


def solver_options(solver: Solver) -> dict[str, Any]:
    """The method's options as they stand in a job file."""
    options = {f.name: getattr(solver, f.name) for f in fields(solver)}  # type: ignore[arg-type]
    return {k: list(v) if isinstance(v, tuple) else v for k, v in options.items() if k != "horizon_epochs"}


def check_job(job: Job, data: DataSet) -> None:
    """What can only be checked once the data are known.

    Raises:
        UsageError: a stop criterion that can never be met, or a loss that does not fit the task.
    """
    if job.run.stop.test_accuracy is not None:
        lacks = "there is no test set" if data.test is None else "the task is regression"
        if data.test is None or data.task != "classification":
            raise UsageError(
                f"run.stop.test_accuracy = {job.run.stop.test_accuracy} can never be reached, since {lacks}; "
                "remove it, or give the data a test set (data.test) and classes."
            )
    if job.loss.name == "cross_entropy" and data.task == "regression":
        raise UsageError(
            'loss.name = "cross_entropy" needs classes, but the targets of '
            f'{data.name} are numbers; use loss.name = "squared", or data.task = "classification" if they are labels.'
        )
