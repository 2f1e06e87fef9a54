"""Straggling ranks: who is ended when, that nobody waits for a busy rank, and that a record repeats a run exactly."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpcopt.analysis.history import open_run
from hpcopt.comm.communicator import Communicator
from hpcopt.comm.quorum import Quorum
from hpcopt.config import DebugOptions, parse_job
from hpcopt.errors import UsageError
from hpcopt.parallel_options import ParallelOptions
from hpcopt.solvers.apts import APTS
from hpcopt.solvers.solver import StepReport
from hpcopt.train.job import PreparedJob
from hpcopt.train.pace import RunPace, make_pace
from hpcopt.train.protocol import Result
from tests.support.paces import Erratic
from tests.support.problems import sharded

pytestmark = pytest.mark.mpi

PHASES = 50
DEADLINE = 60.0
JOB = """
[run]
iterations = 8
device = "cpu"
[data]
source = "digits"
batch = 600
[model]
widths = [8]
[solver]
name = "apts"
"""


def waited_for(file: Path) -> bool:
    """Whether the file appeared in time; no call of MPI is made meanwhile."""
    deadline = time.monotonic() + DEADLINE
    while not file.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


@pytest.mark.parametrize("busy", ["first", "last"])
@pytest.mark.mpi(min_size=2)
def test_nobody_waits_for_a_rank_that_is_busy_and_makes_no_call_of_mpi(
    comm: Communicator, shared_path: Path, busy: str
) -> None:
    quorum, rank = Quorum(comm, 1.0), 0 if busy == "first" else comm.size - 1
    hosts = comm.allgather_objects(comm.host)
    neighbours = [other for other, host in enumerate(hosts) if other != rank and host == hosts[rank]]
    quorum.begin()
    comm.barrier()
    if comm.rank == rank:
        as_told = all(waited_for(shared_path / f"ended{other}") for other in neighbours)
        quorum.end()
    else:
        as_told = all(quorum.goes_on(done) for done in range(1, 100))
        quorum.end()
        (shared_path / f"ended{comm.rank}").touch()
    everywhere = comm.allgather_objects(as_told)
    quorum.close()
    assert all(everywhere), "the others count and come to their end while that rank is busy"


def test_the_count_is_right_in_every_phase_whoever_is_slow(comm: Communicator) -> None:
    quorum, draw = Quorum(comm, 0.5), random.Random(comm.rank)
    for _ in range(PHASES):
        quorum.begin()
        seen = [quorum.finished()]
        for _ in range(draw.randrange(3)):
            time.sleep(draw.uniform(0.0, 0.002))
            seen.append(quorum.finished())
        assert seen == sorted(seen), "ranks that have finished stay finished"
        assert 0 <= seen[0] <= seen[-1] < comm.size, "this rank has not finished"
        quorum.end()
        assert 1 <= quorum.finished() <= comm.size
        comm.barrier()
        assert quorum.finished() == comm.size
        comm.barrier()
    quorum.close()


@pytest.mark.mpi(min_size=2)
def test_a_rank_ends_exactly_when_enough_others_have(comm: Communicator) -> None:
    quorum, last = Quorum(comm, 0.5), comm.size - 1
    quorum.begin()
    for finishing in range(comm.size - 1):
        assert comm.rank < finishing or quorum.goes_on(1) == (finishing < quorum.needed)
        comm.barrier()
        if comm.rank == finishing:
            quorum.end()
        comm.barrier()
    if comm.rank == last:
        assert not quorum.goes_on(1)
        quorum.end()
    quorum.close()


def train(comm: Communicator, steps: int, pace: RunPace | None) -> tuple[torch.Tensor, list[StepReport]]:
    """The variables after some steps of APTS on the full batch, and the reports."""
    objective, solver, reports = sharded(comm), APTS(), []
    objective.local.pace = pace
    state: dict[str, Any] = solver.init(objective)
    for _ in range(steps):
        state, report = solver.step(objective, state, objective.full_batch)
        reports.append(report)
    if pace is not None:
        pace.close()
    return state["parameters"], reports


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("slow", [0, 1])
def test_a_slow_rank_gives_the_step_it_has_and_the_others_do_all(comm: Communicator, slow: int) -> None:
    _, (undisturbed,) = train(comm, 1, None)
    part = (comm.size - 1) / comm.size  # all but one, so that no fast rank is ended by other fast ones
    options = ParallelOptions(quorum=part), DebugOptions(slow_rank=slow, slow_seconds=0.5)
    _, (report,) = train(comm, 1, make_pace(*options, comm))
    assert report.accepted
    assert 1 <= report.local_iterations[slow] < undisturbed.local_iterations[slow]
    for rank in set(range(comm.size)) - {slow}:
        assert report.local_iterations[rank] == undisturbed.local_iterations[rank]


def test_every_rank_makes_an_iteration_however_small_the_quorum(comm: Communicator) -> None:
    _, reports = train(comm, 10, make_pace(ParallelOptions(quorum=0.01), DebugOptions(), comm))
    assert min(min(report.local_iterations) for report in reports) >= 1


def test_a_quorum_of_all_changes_no_bit(comm: Communicator) -> None:
    expected, free = train(comm, 10, None)
    found, paced = train(comm, 10, make_pace(ParallelOptions(quorum=1.0), DebugOptions(), comm))
    assert torch.equal(found, expected)
    assert [report.local_iterations for report in paced] == [report.local_iterations for report in free]


def run(comm: Communicator, path: Path, *settings: str) -> Result:
    """Train the job with ranks of random speed, leaving its record in ``path``."""
    prepared = PreparedJob(parse_job(JOB, list(settings)), comm)
    assert prepared.pace is not None
    prepared.pace = prepared.objective.local.pace = Erratic(prepared.pace, comm.rank)
    return prepared.run(path)


def curves(path: Path) -> dict[str, np.ndarray]:
    """Everything in the record that is not about time or messages."""
    found = open_run(path)
    unlike = ("seconds", "wall_seconds", "seconds_waited", "calls", "bytes")
    tables = {"iterations": found.iterations, "evaluations": found.evaluations}
    columns = {f"{t}/{c}": rows[c] for t, rows in tables.items() for c in rows.dtype.names or () if c not in unlike}
    return {"local_iterations": found.local_iterations, **columns}


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_replay_gives_the_same_bits(comm: Communicator, shared_path: Path, precision: str) -> None:
    first, again = shared_path / "first", shared_path / "again"
    expected = run(comm, first, "parallel.quorum=0.5", f'run.precision="{precision}"')
    found = run(comm, again, f'parallel.replay="{first}"', f'run.precision="{precision}"')
    assert torch.equal(found.parameters, expected.parameters)
    comm.barrier()
    for name, values in curves(first).items():
        np.testing.assert_array_equal(curves(again)[name], values, err_msg=name)
    recorded = open_run(first).local_iterations
    assert recorded.shape == (8, comm.size)
    assert comm.size == 1 or len({tuple(row) for row in recorded}) > 1, "the ranks stopped at other places each time"


def test_a_replay_beyond_its_record_is_refused_on_all_ranks(comm: Communicator, shared_path: Path) -> None:
    run(comm, shared_path / "first", "parallel.quorum=0.5")
    longer = (f'parallel.replay="{shared_path / "first"}"', "run.iterations=9")
    with pytest.raises(UsageError, match="ends after 8 local phases"):
        run(comm, shared_path / "longer", *longer)
    comm.barrier()


@pytest.mark.mpi(min_size=2)
def test_a_replay_on_other_ranks_is_refused_on_all_ranks(comm: Communicator, shared_path: Path) -> None:
    alone = comm.split(comm.rank)
    if comm.rank == 0:
        run(alone, shared_path / "alone", "parallel.quorum=0.5")
    alone.free()
    comm.barrier()
    with pytest.raises(UsageError, match=f"it ran on 1 ranks, and this run has {comm.size}"):
        PreparedJob(parse_job(JOB, [f'parallel.replay="{shared_path / "alone"}"']), comm)
