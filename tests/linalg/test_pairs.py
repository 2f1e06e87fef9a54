"""The ring of pairs and its Gram matrix."""

import pytest
import torch

from hpcopt.linalg.pairs import PairMemory


def inner(x, y):
    return x.double() @ y.double().T


def filled(count, memory=3, size=7):
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.randn(2, size, generator=generator, dtype=torch.float64) for _ in range(count)]
    held = PairMemory.empty(pairs[0][0], memory)
    for s, y in pairs:
        held.offer(s, y, inner)
        held.keep()
    return held, pairs


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_the_last_pairs_are_kept_in_order_with_all_their_products(count):
    memory, pairs = filled(count)
    kept = pairs[-3:]
    assert memory.stored == len(kept)
    s = torch.stack([pair[0] for pair in kept])
    y = torch.stack([pair[1] for pair in kept])
    for block, expected in zip(memory.blocks(), (s @ s.T, s @ y.T, y @ y.T), strict=True):
        torch.testing.assert_close(block, expected)
    torch.testing.assert_close(memory.rows[[2 * slot for slot in memory.slots]], s)


def test_a_pair_that_is_offered_but_not_kept_changes_nothing():
    memory, _ = filled(5)
    before = [block.clone() for block in memory.blocks()]
    memory.offer(torch.ones(7), torch.full((7,), 2.0), inner)
    assert memory.offered() == (7.0, 14.0, 28.0)
    for block, expected in zip(memory.blocks(), before, strict=True):
        assert torch.equal(block, expected)


def test_forgetting_drops_all():
    memory, _ = filled(5)
    memory.forget()
    assert memory.stored == 0
    assert memory.slots == []


def test_products_and_combinations_are_over_the_rows():
    memory, _ = filled(2)
    vector = torch.arange(7.0, dtype=torch.float64)
    torch.testing.assert_close(memory.products(vector, inner), memory.rows @ vector)
    coefficients = torch.arange(8.0, dtype=torch.float64)
    torch.testing.assert_close(memory.combine(coefficients), memory.rows.T @ coefficients)


def test_no_memory_is_allowed():
    memory = PairMemory.empty(torch.ones(4), 0)
    assert torch.equal(memory.combine(torch.zeros(2)), torch.zeros(4))
