"""Blocks that fail on one rank fail on all of them, in step, and say where."""

from __future__ import annotations

import re

import pytest

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import HpcoptError, UsageError

pytestmark = pytest.mark.mpi


def fail(error: Exception | None) -> None:
    if error is not None:
        raise error


def failing_together(comm: Communicator, what: str, errors: dict[int, Exception]) -> Exception:
    """What this rank gets to see when the ranks in ``errors`` raise inside a block."""
    found: Exception | None = None
    try:
        with comm.together(what):
            fail(errors.get(comm.rank))
    except (RuntimeError, HpcoptError) as error:
        found = error
    # All ranks left the block, and in step.
    comm.barrier()
    assert found is not None
    return found


def test_a_block_that_works_raises_nothing_and_costs_one_call(comm: Communicator) -> None:
    with comm.together("counting"):
        pass
    assert comm.ledger.totals().calls == 1


@pytest.mark.mpi(min_size=2)
def test_an_error_of_one_rank_is_raised_on_all_with_the_rank_named(comm: Communicator) -> None:
    last = comm.size - 1
    error = failing_together(comm, "stepping", {last: UsageError("too large; use less")})
    assert type(error) is UsageError
    assert re.fullmatch(rf"on rank {last} \([^)]+\): too large; use less", str(error))
    assert error.collective  # type: ignore[attr-defined]
    assert error.failed_rank == last  # type: ignore[attr-defined]


def test_the_same_error_on_all_ranks_passes_as_it_is(comm: Communicator) -> None:
    mine = UsageError("no such file")
    error = failing_together(comm, "reading", {comm.rank: mine})
    assert error is mine
    assert str(error) == "no such file"
    assert error.collective  # type: ignore[attr-defined]


def test_beside_collectives_of_groups_only_errors_of_users_are_waited_for(comm: Communicator) -> None:
    for error, calls in ((MemoryError("no room"), 0), (UsageError("no such file"), 2)):
        comm.ledger.clear()
        with pytest.raises(type(error), match=str(error)), comm.together("laying out", groups=True):
            raise error
        assert comm.ledger.totals().calls == calls, "ranks of a group may wait for one that fails unexpectedly"
        comm.barrier()


@pytest.mark.mpi(min_size=2)
def test_different_errors_of_all_ranks_become_the_first_and_the_number_of_the_others(comm: Communicator) -> None:
    error = failing_together(comm, "reading", {comm.rank: UsageError(f"bad value {comm.rank}")})
    assert re.fullmatch(r"on rank 0 \([^)]+\): bad value 0 \(\d more ranks? failed too\)", str(error))


@pytest.mark.mpi(min_size=2)
def test_another_exception_becomes_a_runtime_error_with_its_trace(comm: Communicator) -> None:
    error = failing_together(comm, "sorting", {1: KeyError("lost")})
    assert type(error) is RuntimeError
    assert re.match(r"on rank 1 \([^)]+\), sorting: KeyError: 'lost'\n", str(error))
    assert "in fail\n" in str(error)


@pytest.mark.mpi(min_size=2)
def test_a_bug_on_one_rank_goes_before_a_usage_error_on_another(comm: Communicator) -> None:
    error = failing_together(comm, "dividing", {0: UsageError("bad value"), 1: ZeroDivisionError("by nothing")})
    assert type(error) is RuntimeError
    assert str(error).startswith("on rank 1 ")


@pytest.mark.mpi(min_size=2)
def test_an_error_class_of_a_user_arrives_as_its_base_with_the_exit_status(comm: Communicator) -> None:
    class PrivateError(UsageError):
        exit_status = 7

    error = failing_together(comm, "checking", {0: PrivateError("own")})
    assert type(error) is UsageError
    assert error.exit_status == 7


@pytest.mark.mpi(min_size=2)
def test_blocks_that_fail_together_may_be_nested(comm: Communicator) -> None:
    with comm.together("after"):
        with comm.together("outer"):
            error = failing_together(comm, "inner", {1: UsageError("bad value")})
    assert str(error).count("on rank 1") == 1
    with pytest.raises(UsageError, match=r"^on rank 1 \([^)]+\): bad value$"), comm.together("outer"):
        with comm.together("inner"):
            fail(UsageError("bad value") if comm.rank == 1 else None)
