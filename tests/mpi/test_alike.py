"""What is not the same on all ranks is found, and is named alike on all of them."""

from __future__ import annotations

import pytest

from hpcopt.comm.alike import first_difference
from hpcopt.comm.communicator import Communicator

pytestmark = pytest.mark.mpi


def test_what_is_the_same_everywhere_is_no_difference_and_costs_one_gathering(comm: Communicator) -> None:
    assert first_difference(comm, {"size": 3, "names": ["a", "b"]}, "facts") is None
    assert first_difference(comm, {}, "facts") is None
    assert {row[0] for row in comm.ledger.rows()} == {"facts"}


@pytest.mark.mpi(min_size=2)
def test_the_first_fact_and_the_first_rank_that_differ_are_named_on_all_ranks(comm: Communicator) -> None:
    facts = {"alike": 0.5, "shape": (3, max(comm.rank, 1)), "rank": comm.rank}
    if comm.size == 2:
        assert first_difference(comm, facts, "facts") == ("rank", 0, 1, 1)
    else:
        assert first_difference(comm, facts, "facts") == ("shape", (3, 1), (3, 2), 2)


@pytest.mark.mpi(min_size=2)
def test_a_rank_that_lacks_a_fact_does_not_differ_in_it(comm: Communicator) -> None:
    facts = {"shape": 3} if comm.rank == 0 else {}
    assert first_difference(comm, facts, "facts") is None
