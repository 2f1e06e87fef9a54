"""What a job says of its local phases, in one process; the same on several ranks is in tests/mpi."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hpcopt.comm.communicator import Communicator
from hpcopt.comm.lagged_counter import LaggedCounter, LockStepCounter
from hpcopt.comm.quorum import Quorum
from hpcopt.config import DebugOptions, parse_job
from hpcopt.errors import UsageError
from hpcopt.parallel_options import ParallelOptions
from hpcopt.solvers.apts import APTS
from hpcopt.solvers.newton import Newton
from hpcopt.solvers.sgd import SGD
from hpcopt.train.job_checks import check_pace
from hpcopt.train.pace import Replay, Slowed, Unhurried, make_pace, recorded_iterations, skip
from tests.support.runs import write_run


def count(pace: Replay, wanted: int) -> int:
    """Iterations of one phase on a rank that would make ``wanted``."""
    pace.begin()
    done = 0
    while done < wanted and (done == 0 or pace.goes_on(done)):
        done += 1
    pace.end()
    return done


def test_a_replay_makes_the_recorded_iterations() -> None:
    replay = Replay([5, 1, 3], "runs/a")
    assert [count(replay, 5) for _ in range(3)] == [5, 1, 3]
    replay.close()
    assert [count(replay, 5) for _ in range(3)] == [5, 1, 3], "another run begins with the first phase"


def test_iterations_without_a_phase_are_passed_over() -> None:
    replay = Replay([5, -1, -1, 3], "runs/a")
    assert [count(replay, 5) for _ in range(2)] == [5, 3]


def test_a_run_that_goes_on_replays_the_phases_that_are_left() -> None:
    replay = Replay([5, -1, 2, 3], "runs/a")
    for pace in (replay, Slowed(replay, 0.0)):
        skip(pace, 2)
        assert [count(replay, 5) for _ in range(2)] == [2, 3]
    skip(None, 2)


def test_a_replay_longer_than_its_record_is_refused_on_all_ranks() -> None:
    replay = Replay([5], "runs/a")
    count(replay, 5)
    with pytest.raises(UsageError, match=r"'runs/a'.* ends after 1 local phases.*run\.iterations") as refused:
        replay.begin()
    assert refused.value.collective


def test_a_slow_rank_waits_before_every_iteration_and_not_after_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    replay = Replay([3, 1], "runs/a")
    slowed = Slowed(replay, 0.25)
    assert [count(slowed, 5) for _ in range(2)] == [3, 1]  # type: ignore[arg-type]
    assert waits == [0.25] * 4
    slowed.close()
    assert count(replay, 5) == 3


def test_without_a_wish_there_is_no_pace(comm: Communicator) -> None:
    assert make_pace(ParallelOptions(), DebugOptions(), comm) is None


def test_quorum_and_slow_rank_go_together(comm: Communicator) -> None:
    assert isinstance(make_pace(ParallelOptions(quorum=0.5), DebugOptions(), comm), Quorum)
    slowed = make_pace(ParallelOptions(quorum=0.5), DebugOptions(slow_rank=0), comm)
    assert isinstance(slowed, Slowed)
    assert isinstance(slowed.inner, Quorum)
    alone = make_pace(ParallelOptions(), DebugOptions(slow_rank=0), comm)
    assert isinstance(alone, Slowed)
    assert isinstance(alone.inner, Unhurried)


def test_the_method_decides_how_a_phase_ends(comm: Communicator) -> None:
    blocks, none = Newton(direction="block"), DebugOptions()
    lock_step = ParallelOptions(quorum=0.5, termination="lock_step")
    assert type(make_pace(ParallelOptions(quorum=0.5), none, comm, blocks)) is LaggedCounter
    assert type(make_pace(lock_step, none, comm, blocks)) is LockStepCounter
    assert type(make_pace(ParallelOptions(quorum=0.5), none, comm, APTS())) is Quorum
    check_pace(lock_step, DebugOptions(slow_rank=0), blocks)
    check_pace(ParallelOptions(replay="runs/a"), none, blocks)
    with pytest.raises(UsageError, match=r"lock_step.*APTS ends its phases by.*Remove parallel\.termination"):
        check_pace(lock_step, none, APTS())
    for without in (Newton(), Newton(direction="block", block_solver="gram")):
        with pytest.raises(UsageError, match="Newton has none with these options"):
            check_pace(lock_step, none, without)


def test_a_slow_rank_that_does_not_exist_is_refused(comm: Communicator) -> None:
    with pytest.raises(UsageError, match=r"slow_rank = 1 is not a rank of this run, which has ranks 0 to 0"):
        make_pace(ParallelOptions(), DebugOptions(slow_rank=1), comm)


def test_the_recorded_iterations_are_those_of_every_rank(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", epochs=2, per_epoch=3, ranks=2, local_iterations=(5, 1))
    assert recorded_iterations(str(path), 2).tolist() == [[5, 1]] * 4 + [[-1, -1]] + [[5, 1]]


def test_what_cannot_be_replayed_is_refused(tmp_path: Path) -> None:
    for ranks, words in ((3, "it ran on 2 ranks, and this run has 3"), (1, "2 ranks, and this run has 1")):
        path = write_run(tmp_path / str(ranks), epochs=1, ranks=2, local_iterations=(5, 1))
        with pytest.raises(UsageError, match=words):
            recorded_iterations(str(path), ranks)
    with pytest.raises(UsageError, match=r"replay = 'none' cannot be replayed: there is no metrics\.h5 in it"):
        recorded_iterations("none", 2)
    with pytest.raises(UsageError, match="has no local iterations"):
        recorded_iterations(str(write_run(tmp_path / "sgd", epochs=1)), 2)
    (path / "metrics.h5").write_bytes(b"not HDF5")
    with pytest.raises(UsageError, match="cannot be read"):
        recorded_iterations(str(path), 2)


@pytest.mark.parametrize(
    ("parallel", "debug", "key"),
    [
        (ParallelOptions(quorum=0.5), DebugOptions(), "parallel.quorum = 0.5"),
        (ParallelOptions(replay="runs/a"), DebugOptions(), "parallel.replay = 'runs/a'"),
        (ParallelOptions(), DebugOptions(slow_rank=0), "debug.slow_rank = 0"),
    ],
)
def test_a_method_without_local_phases_is_refused(parallel: ParallelOptions, debug: DebugOptions, key: str) -> None:
    check_pace(parallel, debug, APTS())
    with pytest.raises(UsageError, match=f"{key} has no effect here.*SGD has none"):
        check_pace(parallel, debug, SGD())
    check_pace(ParallelOptions(), DebugOptions(), SGD())


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("parallel.quorum=0", "a part of the ranks above 0 and at most 1"),
        ("parallel.quorum=1.5", "a part of the ranks above 0 and at most 1"),
        ("parallel.termination=lock_step", "has no effect without parallel.quorum"),
        ("parallel.quorum=nan", "a part of the ranks above 0 and at most 1"),
        ("debug.slow_rank=-1", "the number of a rank, from 0"),
        ("debug.slow_seconds=-0.1", "not negative"),
        ("debug.slow_seconds=inf", "finite"),
    ],
)
def test_a_value_out_of_range_is_refused(setting: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_job('[data]\nsource = "digits"', [setting])


def test_quorum_and_replay_exclude_each_other() -> None:
    with pytest.raises(UsageError, match=r"both given.*remove parallel\.quorum"):
        parse_job('[data]\nsource = "digits"', ["parallel.quorum=0.5", "parallel.replay=runs/a"])
