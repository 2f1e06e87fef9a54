"""The batches of a run: the same as counted by hand, larger where the training loss says so, and resumable anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcopt.data.batches import BatchGrowth, BatchPlan
from hpcopt.objective.protocol import Batch
from hpcopt.train.sampler import BatchSequence, Sampler

CPU = torch.device("cpu")
TOTAL = 37


def sampler(batch: int | None = 10, overlap: float = 0.0, **growth: float) -> Sampler:
    plan = BatchPlan(TOTAL, 0, TOTAL, batch, seed=3, overlap=overlap)
    return Sampler(plan, CPU, BatchGrowth(**growth))  # type: ignore[arg-type]


def samples(batch: Batch) -> list[int]:
    return list(range(batch.count)) if batch.indices is None else batch.indices.tolist()


def epoch(batches: BatchSequence) -> list[Batch]:
    """All batches of the epoch that begins."""
    last = batches.epochs + 1
    found = []
    while batches.epochs < last:
        found.append(batches.next())
    return found


def sizes_after(losses: Sequence[float], growth: Sampler, epochs: int) -> list[int]:
    """The size in use in each epoch, when the training loss before epoch e is ``losses[e]``."""
    batches, sizes = growth.begin(), []
    for number in range(epochs):
        batches.learn(losses[number])
        sizes.append(batches.size)
        epoch(batches)
    return sizes


@pytest.mark.parametrize("batch", [None, 37, 10, 1])
def test_without_growth_a_batch_follows_from_the_number_of_its_iteration(batch: int | None) -> None:
    plan = BatchPlan(TOTAL, 0, TOTAL, batch, seed=3, overlap=0.25)
    batches = Sampler(plan, CPU).begin()
    for iteration in range(3 * plan.per_epoch):
        batches.learn(1.0)
        found = batches.next()
        number, place = divmod(iteration, plan.per_epoch)
        assert (found.key, found.position) == ((number, place), iteration / plan.per_epoch)
        assert samples(found) == plan.local(number, place).tolist()
        assert (found.count, found.total) == (len(samples(found)), plan.size(place, number))
        assert not batches.wants_loss


def test_the_batch_grows_where_the_loss_has_not_fallen_by_more_than_the_tolerance() -> None:
    losses = [2.0, 1.0, 0.75, 0.5, 0.25, 0.25]  # exact in binary: 0.25 is a fall by the tolerance, not by more
    assert sizes_after(losses, sampler(2, factor=1.5, every=1, tolerance=0.25), 6) == [2, 2, 3, 4, 6, 9]


def test_it_is_compared_with_the_last_look_whether_the_batch_grew_or_not() -> None:
    losses = [1.0, 3.0, 2.0, 2.0]
    assert sizes_after(losses, sampler(2, factor=2.0, every=1, tolerance=0.5), 4) == [2, 4, 4, 8]


def test_only_every_third_epoch_is_looked_at() -> None:
    losses = [1.0, 9.0, 9.0, 0.5, 0.0, 0.0, 0.5, 9.0]
    assert sizes_after(losses, sampler(2, factor=2.0), 8) == [2, 2, 2, 2, 2, 2, 4, 4]


def test_a_loss_within_an_epoch_changes_nothing() -> None:
    batches = sampler(10, factor=2.0, every=1).begin()
    batches.learn(1.0)
    batches.next()
    batches.learn(5.0)
    assert batches.size == 10


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_has_not_fallen(bad: float) -> None:
    assert sizes_after([1.0, bad, 0.5], sampler(4, factor=2.0, every=1), 3)[1] == 8


def test_it_ends_at_the_whole_set_which_is_the_full_batch() -> None:
    batches = sampler(10, overlap=0.25, factor=1.5, every=1).begin()
    seen = []
    for _ in range(6):
        batches.learn(1.0)
        seen.append(batches.size)
        last = epoch(batches)
    assert seen == [10, 15, 22, 33, 37, 37]
    assert [(b.indices, b.count, b.total) for b in last] == [(None, TOTAL, TOTAL)]
    assert not batches.wants_loss


@given(st.integers(1, TOTAL), st.floats(1.0, 4.0), st.integers(1, 3))
def test_every_sample_comes_once_an_epoch_however_the_batch_grows(batch: int, factor: float, every: int) -> None:
    batches = sampler(batch, factor=factor, every=every).begin()
    keys = set()
    for number in range(6):
        batches.learn(1.0)
        found = epoch(batches)
        assert sorted(i for b in found for i in samples(b)) == list(range(TOTAL))
        assert [b.position for b in found] == [(number * len(found) + i) / len(found) for i in range(len(found))]
        keys |= {b.key for b in found}
        assert batches.epochs == number + 1
    assert len(keys) >= 6


@pytest.mark.parametrize(("factor", "looks"), [(1.0, [8, 16, 24]), (2.0, [8, 12, 16, 24])])
def test_the_sets_are_looked_at_every_two_epochs_and_where_batches_may_grow(factor: float, looks: list[int]) -> None:
    batches, found = sampler(10, factor=factor, every=3).begin(), []
    while batches.done < 24:
        if batches.done == (found or [0])[-1]:
            found.append(batches.next_look(2.0))
        batches.next()
    assert found == looks


def test_what_is_counted_in_epochs_is_rounded_to_batches_of_the_size_in_use() -> None:
    batches = sampler(10, factor=2.0, every=1).begin()
    assert (batches.count(2.5), batches.count(0.01), batches.count(1e308) > 10**15) == (10, 1, True)
    for loss in (1.0, 1.0):
        batches.learn(loss)
        epoch(batches)
    assert (batches.size, batches.done, batches.count(2.5)) == (20, 4, 5)


@pytest.mark.parametrize("steps", range(12))
def test_a_restored_sequence_goes_on_with_the_same_batches(steps: int) -> None:
    growing = sampler(10, overlap=0.25, factor=1.5, every=1)

    def walk(batches: BatchSequence, count: int) -> list[tuple[tuple[int, int], float, list[int]]]:
        seen = []
        for _ in range(count):
            batches.learn(1.0 - 0.02 * (batches.epochs == 2))
            found = batches.next()
            seen.append((found.key, found.position, samples(found)))
        return seen

    whole = walk(growing.begin(), 14)
    first, second = growing.begin(), growing.begin()
    walk(first, steps)
    second.restore(first.state())
    assert walk(second, 14 - steps) == whole[steps:]
