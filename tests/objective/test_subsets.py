"""Subsets of a batch: a permuted cycle without repetition that no division among ranks changes."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from hpcopt.layout.block import blocks
from hpcopt.objective.protocol import Batch
from hpcopt.objective.subsets import Subsets

CPU = torch.device("cpu")


def positions(total: int, size: int, number: int, ranks: int = 1, seed: int = 0) -> list[list[int]]:
    """Positions within the batch of a subset, by rank, when the ranks hold it in contiguous parts."""
    found = []
    for part in blocks(total, ranks):
        subset = Subsets(seed, CPU).take(Batch(None, part.count, total), size, number, part.start)
        assert subset.indices is None or subset.count == len(subset.indices)
        indices = range(part.count) if subset.indices is None else subset.indices.tolist()
        found.append([part.start + index for index in indices])
    return found


@pytest.mark.parametrize(("total", "size"), [(40, 10), (37, 10), (37, 1), (37, 36), (5, 2), (1000, 77)])
def test_a_cycle_takes_every_sample_once_in_subsets_of_nearly_equal_size(total: int, size: int) -> None:
    cycle = [positions(total, size, number)[0] for number in range(-(-total // size))]
    assert sorted(chain(*cycle)) == list(range(total))
    lengths = [len(subset) for subset in cycle]
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1


def test_every_cycle_is_drawn_anew() -> None:
    first, second = ([positions(40, 10, 4 * cycle + k)[0] for k in range(4)] for cycle in (0, 1))
    assert not set(map(tuple, first)) & set(map(tuple, second))
    assert positions(40, 10, 0, seed=1) != positions(40, 10, 0, seed=2)


@pytest.mark.parametrize("ranks", [2, 3, 4, 50])
@pytest.mark.parametrize("number", [0, 3, 7])
def test_the_samples_are_the_same_for_any_number_of_ranks(ranks: int, number: int) -> None:
    assert list(chain(*positions(37, 9, number, ranks))) == positions(37, 9, number)[0]


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_total_is_known_to_every_rank(ranks: int) -> None:
    for number in range(6):
        totals = {
            Subsets(0, CPU).take(Batch(None, part.count, 37), 9, number, part.start).total for part in blocks(37, ranks)
        }
        assert totals == {len(positions(37, 9, number)[0])}


def test_of_a_mini_batch_the_samples_are_those_of_the_batch() -> None:
    indices = torch.arange(100, 140, 2)
    batch = Batch(indices, 20, 20, (3, 1), 3.5)
    cycle = [Subsets(0, CPU).take(batch, 5, number, 0) for number in range(4)]
    assert sorted(torch.cat([subset.indices for subset in cycle]).tolist()) == indices.tolist()  # type: ignore[misc]
    assert {(subset.total, subset.key, subset.position) for subset in cycle} == {(5, (3, 1), 3.5)}


@pytest.mark.parametrize("size", [20, 21, 1000])
def test_a_subset_as_large_as_the_batch_is_the_batch(size: int) -> None:
    batch = Batch(None, 20, 20)
    assert Subsets(0, CPU).take(batch, size, 5, 0) is batch


def test_a_kept_plan_serves_batches_of_another_shape() -> None:
    subsets = Subsets(0, CPU)
    for total in (40, 37, 40):
        taken = subsets.take(Batch(None, total, total), 10, 2, 0)
        assert taken.indices is not None
        assert [taken.indices.tolist()] == positions(total, 10, 2)
