"""Phases that a lagged count ends: who is ended when, alike on all ranks, and nothing left between two phases."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.comm.lagged_counter import LaggedCounter, LockStepCounter
from hpcopt.solvers.apts import APTS
from hpcopt.train.pace import Replay
from tests.support.paces import Erratic
from tests.support.problems import sharded

pytestmark = pytest.mark.mpi

Make = Callable[..., LaggedCounter]
KINDS = {
    "asynchronous": LaggedCounter,
    "lock-step": LockStepCounter,
    "lock-step, lag 3": partial(LockStepCounter, lag=3),
}
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
DEADLINE = 60.0
ENDLESS = 10_000


class Ended(NamedTuple):
    """How a phase ended on one rank."""

    done: int
    rounds: int
    ended_early: bool


def nothing(*_: object) -> None:
    """An iteration that takes no time."""


def phase(
    counter: LaggedCounter,
    wanted: int,
    work: Callable[[int], object] = nothing,
    finished: Callable[[], object] = nothing,
) -> Ended:
    """A phase of at most ``wanted`` iterations; iteration ``number``, from 1, is ``work(number)``."""
    counter.begin()
    done = 0
    while done < wanted and (done == 0 or counter.goes_on(done)):
        done += 1
        work(done)
    finished()
    counter.end()
    return Ended(done, counter.rounds, done < wanted)


def wait_for(*files: Path) -> None:
    """Wait for other ranks without a call of MPI."""
    deadline = time.monotonic() + DEADLINE
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline, "the others get there while this rank is busy"
        time.sleep(0.001)


def everyone(comm: Communicator, ended: Sequence[Ended]) -> list[list[Ended]]:
    """For each phase how it ended on each rank."""
    return [list(ranks) for ranks in zip(*comm.allgather_objects(ended), strict=True)]


def sleeps(draw: random.Random, most: float = 0.001) -> Callable[[int], object]:
    """Iterations of random length."""
    return lambda number: time.sleep(draw.uniform(0.0, most) if draw.random() < 0.5 else 0.0)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("which", ["first", "last"])
def test_a_slow_rank_makes_two_iterations_more_than_it_must(comm: Communicator, shared_path: Path, which: str) -> None:
    slow = 0 if which == "first" else comm.size - 1
    busy, finished = shared_path / "busy", [shared_path / f"finished{rank}" for rank in range(comm.size)]
    counter = LaggedCounter(comm, (comm.size - 1) / comm.size)

    def slow_work(number: int) -> None:
        if number == 5:
            busy.touch()
            wait_for(*(file for rank, file in enumerate(finished) if rank != slow))
        time.sleep(0.2 if number >= 5 else 0.0)

    def fast_work(number: int) -> None:
        if number == 4:
            wait_for(busy)

    if comm.rank == slow:
        mine = phase(counter, ENDLESS, slow_work)
    else:
        mine = phase(counter, 4, fast_work, finished[comm.rank].touch)
    (ended,) = everyone(comm, [mine])
    counter.close()
    assert [rank for rank in range(comm.size) if ended[rank].ended_early] == [slow]
    assert 5 <= ended[slow].done <= 7, "they finished while it made its iteration 5"
    assert all(ended[rank].done == 4 for rank in range(comm.size) if rank != slow)


@kinds
def test_with_a_quorum_of_all_no_rank_is_ended(comm: Communicator, make: Make) -> None:
    draw, counter = random.Random(comm.rank), make(comm, 1.0)
    wants = [draw.randrange(10) for _ in range(20)]
    ended = [phase(counter, wanted, sleeps(draw)) for wanted in wants]
    counter.close()
    assert [one.done for one in ended] == wants


@kinds
@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("minimum", [1, 3])
def test_every_rank_makes_the_minimum_unless_it_finishes_before(comm: Communicator, make: Make, minimum: int) -> None:
    counter = make(comm, 0.01, minimum=minimum)
    ended = [phase(counter, 0 if comm.rank == number % comm.size else ENDLESS) for number in range(2 * comm.size)]
    short = phase(counter, 2 if comm.rank == 0 else ENDLESS)
    counter.close()
    for number, ranks in enumerate(everyone(comm, ended)):
        for rank, one in enumerate(ranks):
            assert one.done == 0 if rank == number % comm.size else one.done >= minimum
    assert short.done == 2 if comm.rank == 0 else short.done >= minimum


@kinds
@pytest.mark.parametrize(("part", "phases"), [(0.25, 50), (0.5, 200), (1.0, 50)])
def test_phases_of_random_length_end_on_all_ranks_by_the_same_round(
    comm: Communicator, make: Make, part: float, phases: int
) -> None:
    draw, counter, ended = random.Random(100 * comm.rank + 7), make(comm, part), []
    wants = [draw.choice([0, 1, 2, 5, 10, 20]) for _ in range(phases)]
    for number, wanted in enumerate(wants):
        ended.append(phase(counter, wanted, sleeps(draw, 0.0005)))
        if number % 3 == 0:
            assert comm.reduce_scalars([1.0]) == [comm.size], "rounds and other reductions do not mix"
    counter.close()
    for ranks in everyone(comm, ended):
        assert len({one.rounds for one in ranks}) == 1
        assert sum(not one.ended_early for one in ranks) >= counter.needed
        assert all(one.done >= 3 or not one.ended_early for one in ranks)


@kinds
def test_a_method_may_reduce_within_a_phase(comm: Communicator, make: Make) -> None:
    draw, counter, sums = random.Random(comm.rank), make(comm, 1.0), []

    def work(number: int) -> None:
        time.sleep(draw.uniform(0.0, 0.002))
        if number in (3, 6):
            sums.append(comm.iallreduce(torch.tensor([number])).wait().item())

    for _ in range(10):
        phase(counter, 6 + draw.randrange(5), work)
    counter.close()
    assert sums == [3 * comm.size, 6 * comm.size] * 10


def ends_in_lock_step(wanted: Sequence[int], needed: int, minimum: int, lag: int) -> list[int]:
    """The iterations that each rank makes by the rule: a state is given after each iteration and read ``lag`` later."""
    number = 1
    while True:
        finished = [number >= max(want, 1) for want in wanted]
        if sum(finished) >= needed and (number >= minimum or all(finished)):
            return [min(want, number + lag) for want in wanted]
        number += 1


@pytest.mark.parametrize("lag", [1, 2, 5])
@pytest.mark.parametrize("minimum", [1, 3])
def test_in_lock_step_the_rule_alone_says_who_ends_where(comm: Communicator, lag: int, minimum: int) -> None:
    counter, speed = LockStepCounter(comm, 0.5, minimum, lag), random.Random()
    for number in range(30):
        draw = random.Random(number)
        wants = [draw.randrange(15) for _ in range(comm.size)]
        expected = ends_in_lock_step(wants, counter.needed, minimum, lag)
        ended = phase(counter, wants[comm.rank], sleeps(speed))
        assert ended.done == expected[comm.rank]
    counter.close()


def train(comm: Communicator, pace: Any) -> tuple[torch.Tensor, list[tuple[int, ...]]]:
    """The variables after some steps of a method with local phases, and the iterations of each rank in each."""
    objective, solver, iterations = sharded(comm), APTS(), []
    objective.local.pace = pace
    state: dict[str, Any] = solver.init(objective)
    for _ in range(10):
        state, report = solver.step(objective, state, objective.full_batch)
        iterations.append(tuple(report.local_iterations))
    return state["parameters"], iterations


def test_a_replay_of_the_iterations_gives_the_same_bits(comm: Communicator) -> None:
    counter = LaggedCounter(comm, 0.5, minimum=1)
    expected, recorded = train(comm, Erratic(counter, comm.rank))
    counter.close()
    own = [iterations[comm.rank] if iterations else -1 for iterations in recorded]
    found, replayed = train(comm, Replay(own, "the run before"))
    assert torch.equal(found, expected)
    assert replayed == recorded


def test_in_lock_step_two_runs_give_the_same_bits(comm: Communicator) -> None:
    runs = []
    for _ in range(2):
        counter = LockStepCounter(comm, 0.5)
        runs.append(train(comm, Erratic(counter, comm.rank)))
        counter.close()
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


@kinds
def test_the_ledger_books_the_rounds_and_the_wait_for_the_slowest(comm: Communicator, make: Make) -> None:
    counter = make(comm, 1.0)
    counter.begin()
    counter.end()
    before = comm.ledger.snapshot()
    ended = phase(counter, 3, lambda number: time.sleep(0.1 if comm.rank == 0 else 0.0))
    (row,) = comm.ledger.rows(before)
    counter.close()
    assert (row.label, row.calls, row.bytes) == ("quorum", ended.rounds, 16 * ended.rounds)
    assert comm.rank == 0 or row.seconds_waited > 0.1
