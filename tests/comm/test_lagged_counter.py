"""A lagged count of one rank; what several ranks make of it is in tests/mpi."""

from __future__ import annotations

import pytest

from hpcopt.comm.communicator import Communicator
from hpcopt.comm.lagged_counter import LaggedCounter, LockStepCounter
from hpcopt.errors import UsageError

KINDS = [LaggedCounter, LockStepCounter]


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_alone_is_never_ended(comm: Communicator, kind: type[LaggedCounter]) -> None:
    counter = kind(comm, 0.1)
    for _ in range(3):
        counter.begin()
        assert all(counter.goes_on(done) for done in range(1, 10))
        counter.end()
    counter.close()


@pytest.mark.parametrize("kind", KINDS)
def test_after_close_another_run_may_begin(comm: Communicator, kind: type[LaggedCounter]) -> None:
    counter = kind(comm, 0.5)
    counter.close()
    for _ in range(2):
        counter.begin()
        assert counter.goes_on(1)
        counter.end()
        counter.close()
        counter.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_ledger_books_two_numbers_a_round(comm: Communicator, kind: type[LaggedCounter]) -> None:
    counter = kind(comm, 0.5)
    counter.begin()
    counter.goes_on(1)
    counter.end()
    (row,) = comm.ledger.rows()
    assert (row.label, row.calls, row.bytes) == ("quorum", counter.rounds, 16 * counter.rounds)
    counter.close()


def test_a_round_without_an_iteration_to_hide_it_is_refused(comm: Communicator) -> None:
    with pytest.raises(UsageError, match="lag = 0 is too small"):
        LockStepCounter(comm, 0.5, lag=0)
