"""Reductions by an operation of the caller's own: complete buffers, in the order of the ranks."""

from __future__ import annotations

import numpy as np
import pytest

from hpcopt.comm.communicator import Communicator
from hpcopt.comm.own_operation import allreduce_by
from hpcopt.errors import UsageError

pytestmark = pytest.mark.mpi


def multiplied(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The product of two matrices: associative, but not commutative, and nothing for a fragment of a buffer."""
    size = round(len(first) ** 0.5)
    assert size * size == len(first)
    return (first.reshape(size, size) @ second.reshape(size, size)).ravel()


def matrix(rank: int, size: int) -> np.ndarray:
    """Small whole numbers, exact in every order of multiplication."""
    return np.eye(size) + np.diag(np.arange(1.0, size) % 3 * (rank + 1), 1)


@pytest.mark.parametrize("size", [1, 3, 150])
def test_a_product_of_matrices_is_that_of_the_ranks_in_order(comm: Communicator, size: int) -> None:
    """The largest is longer than what MPI libraries send, or reduce, in one piece."""
    expected = np.eye(size)
    for rank in range(comm.size):
        expected = expected @ matrix(rank, size)
    buffer = matrix(comm.rank, size).ravel()
    assert allreduce_by(comm, buffer, multiplied, "product") is buffer
    np.testing.assert_array_equal(buffer.reshape(size, size), expected)
    (row,) = comm.ledger.rows()
    assert (row.label, row.calls, row.bytes) == ("product", 1, 8 * size * size)


@pytest.mark.parametrize("buffer", [np.zeros(3, dtype=np.float32), np.zeros((2, 2)), np.zeros(6)[::2]])
def test_another_kind_of_buffer_is_refused_before_anything_is_sent(comm: Communicator, buffer: np.ndarray) -> None:
    with pytest.raises(UsageError, match="contiguous row of float64"):
        allreduce_by(comm, buffer, multiplied)
