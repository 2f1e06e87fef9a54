"""A vector and scalars in one message, on one rank; tests/mpi/test_optim_apts.py has more ranks."""

import math

import pytest
import torch

from hpcopt.objective import reductions
from tests.support.simulated import on_ranks


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_scalars_behind_a_vector_keep_all_their_digits(dtype):
    vector = torch.arange(5, dtype=dtype)
    packed = reductions.Packed.empty(5, 3, vector)
    packed.vector[:] = vector
    packed.write((1 / 3, -1e-7, math.nan))
    assert packed.read()[:2] == [1 / 3, -1e-7]
    assert torch.equal(packed.buffer[:5], vector)
    assert packed.buffer.dtype == dtype


def test_a_rank_that_is_alone_counts_what_it_need_not_send(comm):
    packed = reductions.Packed.empty(5, 2, torch.ones(5))
    packed.vector.fill_(2.0)
    assert packed.sum(comm, (1 / 3, 0.0), "gradient") == [1 / 3, 0.0]
    assert packed.vector.tolist() == [2.0] * 5
    assert comm.ledger.rows() == [("gradient", 1, packed.buffer.nbytes, 0.0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_combination_leaves_the_vector_and_tells_what_is_each_ranks_own(comm, dtype):
    vector = torch.arange(5, dtype=dtype)
    summed, scalars, told = reductions.combine(comm, vector, (1 / 3, 2.0), (0.5, 7))
    assert torch.equal(summed, vector)
    assert summed.data_ptr() != vector.data_ptr()
    assert scalars == [1 / 3, 2.0]
    assert told.tolist() == [[0.5, 7.0]]
    assert [(row.label, row.calls) for row in comm.ledger.rows()] == [("step", 1)]


def test_a_scalar_that_is_not_a_number_does_not_touch_the_others(comm):
    _, scalars, _ = reductions.combine(comm, torch.zeros(2), (math.nan, 1 / 3))
    assert math.isnan(scalars[0])
    assert scalars[1] == 1 / 3


def test_what_every_rank_tells_is_known_to_all_by_rank():
    def run(ranks):
        return reductions.tell(ranks, [ranks.rank, 2.0**-60 * ranks.rank], "told")

    assert on_ranks(3, run) == [[[0.0, 0.0], [1.0, 2.0**-60], [2.0, 2.0**-59]]] * 3
