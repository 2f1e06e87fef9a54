"""Every collective against a NumPy reference, bit for bit, on any number of ranks.

All numbers are small integers, which every type holds exactly, so that the order of a sum cannot matter.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.comm.ledger import Ledger
from hpcopt.comm.own_operation import allreduce_by
from hpcopt.errors import UsageError

pytestmark = pytest.mark.mpi

TYPES = ["float32", "float64", "int32", "int64"]
SIZES = [0, 1, 7, 1001]
KINDS: dict[str, Callable[[np.ndarray], Any]] = {"torch": torch.from_numpy, "numpy": lambda array: array}
REFERENCE = {"sum": np.sum, "max": np.max, "min": np.min}

pairs = pytest.mark.parametrize("dtype", TYPES)
kinds = pytest.mark.parametrize("kind", KINDS)


def numbers(rank: int, count: int, dtype: str) -> np.ndarray:
    """What rank ``rank`` holds: different on every rank and in every place."""
    return ((np.arange(count) * 7 + rank * 13) % 101 - 50).astype(dtype)


def everyone(comm: Communicator, count: int, dtype: str) -> np.ndarray:
    return np.stack([numbers(rank, count, dtype) for rank in range(comm.size)])


def make(kind: str, array: np.ndarray) -> Any:
    return KINDS[kind](array.copy())


def assert_same(found: Any, expected: np.ndarray) -> None:
    found = np.asarray(found)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()


def uneven(comm: Communicator) -> list[int]:
    """Counts with an empty part in the middle of different ones."""
    return [0 if rank == 1 else 3 * rank + 2 for rank in range(comm.size)]


# allreduce


@pairs
@kinds
@pytest.mark.parametrize("op", REFERENCE)
@pytest.mark.parametrize("count", SIZES)
def test_allreduce_equals_numpy(comm: Communicator, dtype: str, kind: str, op: str, count: int) -> None:
    buffer = make(kind, numbers(comm.rank, count, dtype))
    result = comm.allreduce(buffer, op)
    assert result is buffer
    assert_same(result, REFERENCE[op](everyone(comm, count, dtype), axis=0).astype(dtype))


def test_allreduce_keeps_the_shape_and_reduces_scalars_of_dimension_zero(comm: Communicator) -> None:
    assert_same(comm.allreduce(torch.ones(2, 3, 5)), np.full((2, 3, 5), comm.size, dtype=np.float32))
    assert_same(comm.allreduce(np.array(2.0)), np.array(2.0 * comm.size))


def test_allreduce_works_on_a_contiguous_slice_and_leaves_its_surroundings(comm: Communicator) -> None:
    whole = torch.ones(10)
    comm.allreduce(whole[3:6])
    assert_same(whole, np.array([1, 1, 1] + 3 * [comm.size] + 4 * [1], dtype=np.float32))


def test_a_parameter_that_requires_a_gradient_is_reduced_in_place(comm: Communicator) -> None:
    parameter = torch.nn.Parameter(torch.ones(5))
    assert_same(comm.allreduce(parameter).detach(), np.full(5, comm.size, dtype=np.float32))


@pairs
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 8])
def test_chunks_change_nothing(dtype: str, chunk: int) -> None:
    comm = Communicator(chunk=chunk)
    expected = everyone(comm, 7, dtype).sum(axis=0).astype(dtype)
    assert_same(comm.allreduce(make("torch", numbers(comm.rank, 7, dtype))), expected)
    assert_same(comm.iallreduce(make("numpy", numbers(comm.rank, 7, dtype))).wait(), expected)
    root = comm.size - 1
    assert_same(comm.bcast(make("torch", numbers(comm.rank, 7, dtype)), root), numbers(root, 7, dtype))


def test_a_split_communicator_chunks_as_its_parent() -> None:
    comm = Communicator(chunk=3)
    group = comm.split(0)
    assert group.chunk == 3
    group.free()


# iallreduce


@kinds
def test_several_reductions_may_be_in_flight(comm: Communicator, kind: str) -> None:
    sizes = [5, 0, 1000, 1]
    requests = [comm.iallreduce(make(kind, numbers(comm.rank, n, "float64"))) for n in sizes]
    for n, request in reversed(list(zip(sizes, requests, strict=True))):
        assert_same(request.wait(), everyone(comm, n, "float64").sum(axis=0))


@kinds
def test_broadcasts_may_be_in_flight_with_reductions(comm: Communicator, kind: str) -> None:
    root, before = comm.size - 1, comm.ledger.snapshot()
    requests = [
        comm.ibcast(make(kind, numbers(comm.rank, 7, "float64")), root, label="flight"),
        comm.iallreduce(make(kind, numbers(comm.rank, 3, "float64")), label="flight"),
        comm.ibcast(make(kind, numbers(comm.rank, 0, "float64")), 0, label="flight"),
    ]
    found = [request.wait() for request in requests]
    assert_same(found[0], numbers(root, 7, "float64"))
    assert_same(found[1], everyone(comm, 3, "float64").sum(axis=0))
    ((label, calls, nbytes, _),) = comm.ledger.rows(before)
    assert (label, calls, nbytes) == ("flight", 3, 80)
    with pytest.raises(UsageError, match=f"root = {comm.size} is not a rank"):
        comm.ibcast(make(kind, numbers(0, 7, "float64")), comm.size)


def test_a_request_can_be_tested_until_it_is_done_and_waited_for_again(comm: Communicator) -> None:
    buffer = torch.ones(1000)
    request = comm.iallreduce(buffer, "max")
    while not request.test():
        pass
    assert request.test()
    assert request.wait() is buffer
    assert request.wait() is buffer
    assert_same(buffer, np.ones(1000, dtype=np.float32))


def test_blocking_calls_may_come_between(comm: Communicator) -> None:
    request = comm.iallreduce(torch.ones(10))
    assert_same(comm.allreduce(torch.ones(3)), np.full(3, comm.size, dtype=np.float32))
    assert_same(request.wait(), np.full(10, comm.size, dtype=np.float32))


# bcast, reduce_scatter, allgatherv


@pairs
@kinds
@pytest.mark.parametrize("count", SIZES)
def test_bcast_from_every_rank(comm: Communicator, dtype: str, kind: str, count: int) -> None:
    for root in range(comm.size):
        buffer = make(kind, numbers(comm.rank, count, dtype))
        assert comm.bcast(buffer, root) is buffer
        assert_same(buffer, numbers(root, count, dtype))


def test_the_root_of_a_bcast_may_hold_a_read_only_array(comm: Communicator) -> None:
    buffer = np.arange(4.0) if comm.rank == 0 else np.zeros(4)
    buffer.flags.writeable = comm.rank != 0
    assert_same(comm.bcast(buffer), np.arange(4.0))


@pairs
@kinds
@pytest.mark.parametrize("chunk", [4, 2**30])
def test_reduce_scatter_gives_each_rank_its_block_of_the_sum(dtype: str, kind: str, chunk: int) -> None:
    comm = Communicator(chunk=chunk)
    counts = uneven(comm)
    total, start = sum(counts), sum(counts[: comm.rank])
    buffer = make(kind, numbers(comm.rank, total, dtype))
    part = comm.reduce_scatter(buffer, counts)
    expected = everyone(comm, total, dtype).sum(axis=0).astype(dtype)
    assert_same(part, expected[start : start + counts[comm.rank]])
    assert type(part) is type(buffer)
    assert_same(buffer, numbers(comm.rank, total, dtype))


@pairs
@kinds
@pytest.mark.parametrize("chunk", [4, 2**30])
def test_allgatherv_puts_the_parts_in_order(dtype: str, kind: str, chunk: int) -> None:
    comm = Communicator(chunk=chunk)
    counts = uneven(comm)
    part = make(kind, numbers(comm.rank, counts[comm.rank], dtype))
    whole = comm.allgatherv(part, counts)
    assert_same(whole, np.concatenate([numbers(rank, n, dtype) for rank, n in enumerate(counts)]))
    assert type(whole) is type(part)


@pairs
@kinds
@pytest.mark.parametrize("chunk", [4, 2**30])
def test_several_gathers_may_be_in_flight(dtype: str, kind: str, chunk: int) -> None:
    comm, requests = Communicator(chunk=chunk), []
    cases = [uneven(comm), [0] * comm.size, [7] + [0] * (comm.size - 1)]
    for counts in cases:
        part = make(kind, numbers(comm.rank, counts[comm.rank], dtype))
        requests.append(comm.iallgatherv(part, make(kind, numbers(9, sum(counts), dtype)), counts, label="flight"))
    for counts, request in reversed(list(zip(cases, requests, strict=True))):
        assert_same(request.wait(), np.concatenate([numbers(rank, n, dtype) for rank, n in enumerate(counts)]))
    ((_, calls, nbytes, _),) = comm.ledger.rows()
    assert (calls, nbytes) == (3, (sum(cases[0]) + 7) * np.dtype(dtype).itemsize)


def test_what_is_sent_lives_until_it_has_come(comm: Communicator) -> None:
    part, counts = torch.full((1000,), float(comm.rank)), [1000] * comm.size
    gone = weakref.ref(part)
    request = comm.iallgatherv(part, torch.empty(1000 * comm.size), counts)
    del part
    assert gone() is not None
    assert_same(request.wait(), np.repeat(np.arange(comm.size, dtype=np.float32), 1000))
    assert gone() is None


@pytest.mark.parametrize("chunk", [1, 2**30])
def test_more_ranks_than_items(chunk: int) -> None:
    comm = Communicator(chunk=chunk)
    counts = [2] + [0] * (comm.size - 1)
    part = torch.arange(float(counts[comm.rank]))
    assert_same(comm.allgatherv(part, counts), np.array([0, 1], dtype=np.float32))
    assert_same(comm.reduce_scatter(torch.ones(2), counts), np.full(counts[comm.rank], comm.size, dtype=np.float32))


@pytest.mark.parametrize("chunk", [1, 2**30])
def test_nothing_at_all_can_be_gathered_and_scattered(chunk: int) -> None:
    comm = Communicator(chunk=chunk)
    nothing = [0] * comm.size
    assert comm.allgatherv(torch.empty(0), nothing).shape == (0,)
    assert comm.reduce_scatter(np.empty(0), nothing).shape == (0,)


def test_scatter_and_gather_are_inverse(comm: Communicator) -> None:
    counts = uneven(comm)
    buffer = torch.arange(float(sum(counts)))
    part = comm.reduce_scatter(buffer, counts)
    assert_same(comm.allgatherv(part, counts), buffer.numpy() * comm.size)


# Scalars and objects


def test_scalars_are_reduced_as_float64_in_one_call(comm: Communicator) -> None:
    tiny = 2.0**-50
    found = comm.reduce_scalars([1 + tiny, comm.rank, 3])
    assert found == [comm.size * (1 + tiny), sum(range(comm.size)), 3 * comm.size]
    assert all(type(value) is float for value in found)
    assert comm.reduce_scalars([comm.rank, -comm.rank], "max") == [comm.size - 1, 0]
    assert comm.reduce_scalars([comm.rank, -comm.rank], "min") == [0, 1 - comm.size]
    assert comm.reduce_scalars([]) == []
    assert comm.ledger.totals().calls == 4


def test_a_sum_carries_nan_and_infinity_to_every_rank(comm: Communicator) -> None:
    bad = comm.rank == comm.size - 1
    nan, infinity = comm.reduce_scalars([np.nan if bad else 1.0, np.inf if bad else 1.0])
    assert np.isnan(nan)
    assert infinity == np.inf


def test_scalars_and_objects_of_the_root_reach_every_rank(comm: Communicator) -> None:
    root = comm.size - 1
    assert comm.broadcast_scalars([comm.rank, 0.1], root) == [root, 0.1]
    assert comm.broadcast_object({"from": comm.rank}, root) == {"from": root}


def test_an_object_only_the_root_can_send_is_not_touched_elsewhere(comm: Communicator) -> None:
    mine = "good" if comm.rank == 0 else (lambda: "cannot be pickled")
    assert comm.broadcast_object(mine) == "good"


def test_objects_are_gathered_by_rank(comm: Communicator) -> None:
    expected = [{"rank": rank} for rank in range(comm.size)]
    assert comm.allgather_objects({"rank": comm.rank}) == expected
    root = comm.size - 1
    assert comm.gather_objects({"rank": comm.rank}, root) == (expected if comm.rank == root else None)


# The ledger


def test_the_ledger_counts_calls_and_bytes_by_label(comm: Communicator) -> None:
    counts = [2] * comm.size
    comm.allreduce(torch.ones(10), label="gradient")
    comm.allreduce(torch.ones(10, dtype=torch.float64), label="gradient")
    comm.iallreduce(np.ones(3), label="bucket").wait()
    comm.bcast(torch.ones(4, dtype=torch.int32))
    comm.reduce_scatter(torch.ones(2 * comm.size), counts)
    comm.allgatherv(torch.ones(2), counts)
    comm.reduce_scalars([1.0, 2.0])
    comm.barrier()
    found = {row.label: (row.calls, row.bytes) for row in comm.ledger.rows()}
    assert found == {
        "gradient": (2, 120),
        "bucket": (1, 24),
        "bcast": (1, 16),
        "reduce_scatter": (1, 8 * comm.size),
        "allgatherv": (1, 8 * comm.size),
        "scalars": (1, 16),
        "barrier": (1, 0),
    }
    assert comm.ledger.totals()[:2] == (8, 176 + 16 * comm.size)
    assert comm.ledger.totals().seconds_waited > 0


def test_with_barriers_the_wait_for_the_last_rank_is_kept_apart(comm: Communicator) -> None:
    counts = [1] * comm.size
    calls: list[Callable[[Communicator], object]] = [
        lambda comm: comm.allreduce(np.ones(3)),
        lambda comm: comm.bcast(np.ones(3)),
        lambda comm: comm.reduce_scatter(np.ones(comm.size), counts),
        lambda comm: comm.allgatherv(np.ones(1), counts),
        lambda comm: comm.reduce_scalars([1.0]),
        lambda comm: comm.broadcast_scalars([1.0]),
        lambda comm: comm.gather_objects("a"),
        lambda comm: allreduce_by(comm, np.ones(1), np.add),
        lambda comm: comm.barrier(),
    ]
    for call in calls:
        comm.barriers = False
        comm.ledger.clear()
        call(comm)
        assert comm.ledger.seconds_for_others == 0
        comm.barriers = True
        comm.ledger.clear()
        call(comm)
        apart = comm.ledger.seconds_for_others
        assert 0 < apart < comm.ledger.totals().seconds_waited


def test_a_group_has_the_barriers_of_all(comm: Communicator) -> None:
    comm.barriers = True
    group = comm.split(0)
    assert group.barriers
    group.free()


@pytest.mark.mpi(min_size=2)
def test_the_others_wait_for_a_rank_that_comes_late(comm: Communicator) -> None:
    comm.barriers = True
    comm.barrier()
    comm.ledger.clear()
    if comm.rank == 0:
        sleep(0.1)
    comm.allreduce(np.ones(3))
    assert comm.rank == 0 or comm.ledger.seconds_for_others > 0.05


def test_a_refused_call_is_not_booked(comm: Communicator) -> None:
    with pytest.raises(UsageError):
        comm.allreduce(torch.ones(3), "mean")
    assert comm.ledger.rows() == []


# Groups


def test_split_makes_groups_that_reduce_on_their_own(comm: Communicator) -> None:
    color = comm.rank % 2
    members = [rank for rank in range(comm.size) if rank % 2 == color]
    group = comm.split(color)
    assert (group.size, group.rank) == (len(members), members.index(comm.rank))
    assert group.reduce_scalars([comm.rank]) == [sum(members)]
    group.free()


def test_split_orders_by_key(comm: Communicator) -> None:
    group = comm.split(0, key=-comm.rank)
    assert group.rank == comm.size - 1 - comm.rank
    group.free()


def test_ranks_of_one_host_find_each_other(comm: Communicator) -> None:
    group = comm.split_shared()
    hosts = comm.allgather_objects(comm.host)
    assert group.size == hosts.count(comm.host)
    group.free()


def test_groups_share_the_ledger_and_the_parent_outlives_them(comm: Communicator) -> None:
    group = comm.split(comm.rank)
    group.reduce_scalars([1.0])
    group.free()
    group.free()
    assert comm.ledger.totals().calls == 1
    comm.free()
    assert comm.reduce_scalars([1.0]) == [comm.size]


def test_a_ledger_can_be_given(comm: Communicator) -> None:
    ledger = Ledger()
    Communicator(comm.mpi, ledger=ledger).barrier()
    assert ledger.totals().calls == 1


# The fixtures


def test_one_folder_is_shared_by_all_ranks(comm: Communicator, shared_path: Path) -> None:
    (shared_path / str(comm.rank)).touch()
    comm.barrier()
    assert sorted(path.name for path in shared_path.iterdir()) == sorted(str(rank) for rank in range(comm.size))
