"""Straggling ranks from the outside: the record says who stopped where, a replay repeats it, no failure is a hang."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpcopt.analysis.history import open_run
from tests.fault.conftest import run_words
from tests.support.held import write_job

JOB = """
[run]
iterations = 6
[data]
source = "digits"
batch = 600
[solver]
name = "apts"
"""

MODEL = """
import inspect
import math

import torch
from mpi4py import MPI

class Planted(torch.nn.Linear):
    def forward(self, x):
        if MPI.COMM_WORLD.rank == 1 and "solve_locally" in [frame.function for frame in inspect.stack()]:
            raise ArithmeticError("planted failure")
        return super().forward(x.flatten(1))

def planted(input_shape, outputs):
    return Planted(math.prod(input_shape), outputs)
"""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a job of APTS and a model that fails on rank 1."""
    monkeypatch.chdir(tmp_path)
    return write_job(tmp_path, JOB, MODEL)


@pytest.mark.parametrize("mpi", ["own", "other"])
def test_the_record_says_who_stopped_where_and_replays(workplace: Path, launch: Callable, mpi: str) -> None:
    slow = ("parallel.quorum=0.5", "debug.slow_rank=1", "debug.slow_seconds=0.2")
    first = launch(2, run_words(*slow, directory="first"), mpi=mpi, timeout=120)
    assert first.returncode == 0, first.stderr
    again = launch(2, run_words("parallel.replay=first", directory="again"), mpi=mpi, timeout=120)
    assert again.returncode == 0, again.stderr
    recorded, replayed = open_run("first"), open_run("again")
    assert recorded.local_iterations.shape == (6, 2)
    assert (recorded.local_iterations[:, 1] >= 1).all()
    assert (recorded.local_iterations[:, 1] < recorded.local_iterations[:, 0]).all()
    np.testing.assert_array_equal(replayed.local_iterations, recorded.local_iterations)
    for name in ("loss", "loss_after", "rho", "radius"):
        np.testing.assert_array_equal(replayed.iterations[name], recorded.iterations[name])
    shown = launch(0, ["hpcopt", "inspect", "first"]).stdout
    assert "mean of a phase on each rank" in shown


def test_a_run_may_be_replayed_into_its_own_directory(workplace: Path, launch: Callable) -> None:
    assert launch(2, run_words("parallel.quorum=0.5", "debug.slow_rank=0"), timeout=120).returncode == 0
    recorded = open_run("out").iterations.loss
    again = launch(2, [*run_words("parallel.replay=out"), "--fresh"], timeout=120)
    assert again.returncode == 0, again.stderr
    np.testing.assert_array_equal(open_run("out").iterations.loss, recorded)


@pytest.mark.parametrize("mpi", ["own", "other"])
def test_a_rank_that_fails_in_a_local_phase_ends_the_job(workplace: Path, launch: Callable, mpi: str) -> None:
    done = launch(2, run_words("parallel.quorum=1.0", "model.name=mymodels:planted"), mpi=mpi, timeout=120)
    assert not done.timed_out
    assert done.returncode != 0
    assert "planted failure" in done.stderr


REFUSED = {
    "no local phase": (("solver.name=lbfgs", "parallel.quorum=0.5"), "quorum = 0.5 has no effect here"),
    "no record": (("parallel.replay=nowhere",), "there is no metrics.h5 in it"),
    "no such rank": (("debug.slow_rank=2",), "debug.slow_rank = 2 is not a rank of this run"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_the_data_are_read(workplace: Path, launch: Callable, case: str) -> None:
    settings, message = REFUSED[case]
    done = launch(2, run_words(*settings, "data.source=nothing.csv"), timeout=120)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("hpcopt: error") == 1
    assert not os.path.exists("out")
