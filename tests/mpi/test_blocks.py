"""Sums of which every rank gets a block, and blocks of all ranks put together, against NumPy, bit for bit."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from hpcopt.comm.communicator import Communicator
from tests.support.buffers import assert_same, everyone, kinds, make, numbers, types, uneven

pytestmark = pytest.mark.mpi


@types
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


@types
@kinds
@pytest.mark.parametrize("chunk", [4, 2**30])
def test_allgatherv_puts_the_parts_in_order(dtype: str, kind: str, chunk: int) -> None:
    comm = Communicator(chunk=chunk)
    counts = uneven(comm)
    part = make(kind, numbers(comm.rank, counts[comm.rank], dtype))
    whole = comm.allgatherv(part, counts)
    assert_same(whole, np.concatenate([numbers(rank, n, dtype) for rank, n in enumerate(counts)]))
    assert type(whole) is type(part)


@types
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
def test_ranks_without_an_item_gather_and_scatter_with_the_others(chunk: int) -> None:
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
