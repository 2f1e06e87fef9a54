"""The method of docs/adding-a-method.md is one as any other: named in a job file, the same on any ranks, saved."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcopt.comm.communicator import Communicator
from hpcopt.config import parse_job
from hpcopt.train.job import PreparedJob
from hpcopt.train.protocol import Result
from tests.support.pages import write_files

pytestmark = pytest.mark.mpi

SMALL = ["run.device=cpu", "data.limit=150", "debug.check_agreement=true"]


@pytest.fixture
def page(shared_path: Path, comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of the page, from which modules can be imported. *Collective*."""
    if comm.rank == 0:
        write_files("adding-a-method.md", shared_path)
    comm.barrier()
    monkeypatch.syspath_prepend(shared_path)
    monkeypatch.delitem(sys.modules, "barzilai_borwein", raising=False)
    return shared_path


def trained(page: Path, comm: Communicator, run: str | None, *settings: str) -> tuple[Result, Any]:
    job = parse_job((page / "job.toml").read_text(), [*SMALL, *settings])
    prepared = PreparedJob(job, comm)
    result = prepared.run(None if run is None else page / run)
    return result, prepared.objective.model.tensors()


def losses(result: Result) -> list[float]:
    return [row["train_loss"] for row in result.history]


@pytest.mark.parametrize("settings", [[], ["parallel.state=sharded"], ["parallel.layout=variables", "model.init=he"]])
def test_its_curve_does_not_depend_on_the_ranks(page: Path, comm: Communicator, settings: list[str]) -> None:
    from mpi4py import MPI

    often = ["run.iterations=6", "run.evaluate_every=1", *settings]
    alone, together = (trained(page, ranks, None, *often)[0] for ranks in (Communicator(MPI.COMM_SELF), comm))
    assert losses(together) == pytest.approx(losses(alone), rel=1e-9)
    assert losses(together)[-1] < 0.8 * losses(together)[0]


def test_it_goes_on_from_its_checkpoint_to_the_last_bit(page: Path, comm: Communicator) -> None:
    whole, expected = trained(page, comm, "whole")
    first, _ = trained(page, comm, "pieces", "run.iterations=5")
    rest, found = trained(page, comm, "pieces")
    assert (first.iterations, rest.resumed_from, rest.iterations) == (5, 5, whole.iterations)
    assert all(np.array_equal(np.asarray(found[name]), np.asarray(expected[name])) for name in expected)
