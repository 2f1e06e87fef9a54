"""Phases that a lagged count ends, as whole jobs on either MPI library: they end alike, and no failure is a hang."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fault.conftest import Launch

JOB = """
import random, sys, time
from hpcopt.comm.launch import run_guarded


def main():
    from hpcopt.comm.communicator import Communicator
    from hpcopt.comm.lagged_counter import LaggedCounter, LockStepCounter

    comm, draw = Communicator(), random.Random(time.time())
    counter = {"asynchronous": LaggedCounter, "lock-step": LockStepCounter}[sys.argv[1]](comm, 0.5)
    told = []
    for number in range(50):
        counter.begin()
        done, wanted = 0, draw.randrange(20)
        while done < wanted and (done == 0 or counter.goes_on(done)):
            done += 1
            time.sleep(draw.uniform(0.0, 0.001))
        if number == 20 and comm.rank == 1 and sys.argv[2] == "fail":
            raise ArithmeticError("planted failure")
        counter.end()
        told.append(counter.rounds)
    counter.close()
    everyone = comm.allgather_objects(told)
    if comm.rank == 0:
        print("alike" if all(rounds == told for rounds in everyone) else everyone)
    return 0


sys.exit(run_guarded(main))
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job of 50 phases of random length on each rank."""
    (tmp_path / "job.py").write_text(JOB)
    return tmp_path / "job.py"


@pytest.mark.parametrize("mpi", ["own", "other"])
@pytest.mark.parametrize("mode", ["asynchronous", "lock-step"])
def test_all_ranks_end_every_phase_by_the_same_round(job: Path, launch: Launch, mpi: str, mode: str) -> None:
    done = launch(3, [str(job), mode, "work"], mpi=mpi, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "alike"


@pytest.mark.parametrize("mpi", ["own", "other"])
@pytest.mark.parametrize("mode", ["asynchronous", "lock-step"])
def test_a_rank_that_fails_in_a_phase_ends_the_job(job: Path, launch: Launch, mpi: str, mode: str) -> None:
    done = launch(3, [str(job), mode, "fail"], mpi=mpi, timeout=120)
    assert not done.timed_out
    assert done.returncode != 0
    assert "planted failure" in done.stderr
