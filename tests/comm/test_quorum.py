"""When enough ranks have finished; what several ranks make of it is in tests/mpi."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hpcopt.comm.communicator import Communicator
from hpcopt.comm.quorum import Quorum


@pytest.mark.parametrize(
    ("part", "ranks", "needed"),
    [
        (0.5, 1, 1),
        (0.5, 2, 1),
        (0.5, 3, 2),
        (0.75, 4, 3),
        (0.01, 4, 1),
        (1.0, 7, 7),
        (0.07, 100, 7),  # 0.07 * 100 is above 7 by rounding
        (0.6, 5, 3),
        (2 / 3, 3, 2),
    ],
)
def test_the_number_of_ranks_is_rounded_up(part: float, ranks: int, needed: int) -> None:
    comm: Any = SimpleNamespace(size=ranks)
    assert Quorum(comm, part).needed == needed


def test_one_rank_alone_is_never_ended(comm: Communicator) -> None:
    quorum = Quorum(comm, 0.1)
    for _ in range(3):
        quorum.begin()
        assert all(quorum.goes_on(done) for done in range(1, 10))
        quorum.end()
        assert quorum.finished() == 1
    quorum.close()


def test_after_close_another_run_may_begin(comm: Communicator) -> None:
    quorum = Quorum(comm, 0.5)
    quorum.close()
    for _ in range(2):
        quorum.begin()
        assert quorum.finished() == 0
        quorum.end()
        quorum.close()
        quorum.close()


def test_the_ledger_has_an_account_for_it(comm: Communicator) -> None:
    quorum = Quorum(comm, 0.5)
    quorum.begin()
    comm.ledger.clear()
    quorum.goes_on(1)
    quorum.end()
    quorum.close()
    (row,) = comm.ledger.rows()
    assert (row.label, row.calls, row.bytes) == ("quorum", 2, 16)
