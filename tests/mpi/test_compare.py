"""What hpcopt is compared with makes the same steps on any number of processes, line searches included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from mpi4py import MPI

from benchmarks._gloo import start_gloo
from benchmarks.compare.worker import Trial
from hpcopt.comm.communicator import Communicator
from hpcopt.config import parse_job
from hpcopt.train.job import PreparedJob

pytestmark = pytest.mark.mpi
JOB = ['data.source="digits"', "model.widths=[8]", "loss.weight_decay=1e-2", "run.precision=float64", "run.device=cpu"]


@pytest.fixture(scope="module")
def gloo() -> Iterator[None]:
    """The ranks as a process group of torch."""
    start_gloo()
    yield
    torch.distributed.destroy_process_group()


def history(comm: MPI.Comm, method: str, batch: str) -> list[dict[str, Any]]:
    """A short run on the ranks of ``comm``; what its evaluations know, without their seconds."""
    ranks = Communicator(comm)
    prepared = PreparedJob(parse_job("", [*JOB, "solver.name=sgd", f"data.batch={batch}"]), ranks)
    told = Trial(prepared, {"method": method, "rate": 0.3, "budget": 4.0}, ranks).run()
    kept = ("gradient_equivalents", "epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
    return [{key: row[key] for key in kept} for row in told["history"]]


@pytest.mark.usefixtures("gloo")
@pytest.mark.parametrize(("method", "batch"), [("sgd", "200"), ("adam", "200"), ("lbfgs-wolfe", '"full"')])
def test_several_processes_make_the_steps_of_one(method: str, batch: str) -> None:
    several, alone = history(MPI.COMM_WORLD, method, batch), history(MPI.COMM_SELF, method, batch)
    assert len(several) == len(alone) > 2
    for row, expected in zip(several, alone, strict=True):
        assert row == pytest.approx(expected, rel=1e-8)
