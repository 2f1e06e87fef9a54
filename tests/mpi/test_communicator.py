"""Collectives against a NumPy reference, bit for bit, on any number of ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from tests.support.buffers import assert_same, everyone, kinds, make, numbers, types

pytestmark = pytest.mark.mpi

SIZES = [0, 1, 7, 1001]
REFERENCE = {"sum": np.sum, "max": np.max, "min": np.min}


# allreduce


@types
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


@types
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


# bcast


@types
@kinds
@pytest.mark.parametrize("count", SIZES)
def test_bcast_brings_the_buffer_of_any_rank_to_all(comm: Communicator, dtype: str, kind: str, count: int) -> None:
    for root in range(comm.size):
        buffer = make(kind, numbers(comm.rank, count, dtype))
        assert comm.bcast(buffer, root) is buffer
        assert_same(buffer, numbers(root, count, dtype))


def test_the_root_of_a_bcast_may_hold_a_read_only_array(comm: Communicator) -> None:
    buffer = np.arange(4.0) if comm.rank == 0 else np.zeros(4)
    buffer.flags.writeable = comm.rank != 0
    assert_same(comm.bcast(buffer), np.arange(4.0))


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


# The fixtures


def test_one_folder_is_shared_by_all_ranks(comm: Communicator, shared_path: Path) -> None:
    (shared_path / str(comm.rank)).touch()
    comm.barrier()
    assert sorted(path.name for path in shared_path.iterdir()) == sorted(str(rank) for rank in range(comm.size))
