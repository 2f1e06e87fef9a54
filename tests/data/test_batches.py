"""Batches: every sample once an epoch, the same batches on any number of ranks, fair shares, exact overlap."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcopt.data.batches import BatchGrowth, BatchPlan
from hpcopt.errors import UsageError

totals = st.integers(1, 300)
ranks = st.integers(1, 8)
seeds = st.integers(0, 2**32)


def cuts(total: int, parts: int) -> list[tuple[int, int]]:
    """Contiguous unequal shards: (start, count) of each part, also for fewer samples than parts."""
    edges = [total * i // parts for i in range(parts + 1)]
    return [(a, b - a) for a, b in pairwise(edges)]


@st.composite
def set_and_batch(draw: st.DrawFn) -> tuple[int, int]:
    """A set's size and a batch size that it can fill."""
    total = draw(totals)
    return total, draw(st.integers(1, total))


def whole(total: int, batch: int | None, seed: int, overlap: float = 0.0) -> BatchPlan:
    return BatchPlan(total, 0, total, batch, seed, overlap)


@given(set_and_batch(), seeds, st.integers(0, 5))
def test_every_sample_comes_once_an_epoch(sizes: tuple[int, int], seed: int, epoch: int) -> None:
    plan = whole(*sizes, seed)
    seen = np.concatenate([plan.local(epoch, b) for b in range(plan.per_epoch)])
    assert sorted(seen) == list(range(sizes[0]))


@given(set_and_batch(), seeds, ranks, st.sampled_from([0.0, 0.25, 0.5]))
def test_union_over_ranks_is_the_batch_of_one_rank(
    sizes: tuple[int, int], seed: int, parts: int, overlap: float
) -> None:
    total, batch = sizes
    one = whole(total, batch, seed, overlap)
    plans = [BatchPlan(total, start, count, batch, seed, overlap) for start, count in cuts(total, parts)]
    for number in range(one.per_epoch):
        union = np.concatenate([plan.local(2, number) + plan.start for plan in plans])
        assert union.tolist() == one.local(2, number).tolist()
        assert {plan.size(number, 2) for plan in plans} == {len(union)}


@given(set_and_batch(), seeds)
def test_batches_differ_in_size_by_one_at_most_and_never_exceed_what_was_asked(
    sizes: tuple[int, int], seed: int
) -> None:
    total, batch = sizes
    plan = whole(total, batch, seed)
    counts = [plan.size(b, 1) for b in range(plan.per_epoch)]
    assert plan.per_epoch == -(-total // batch)
    assert max(counts) - min(counts) <= 1
    assert max(counts) <= batch


@given(set_and_batch(), seeds, ranks)
def test_each_rank_gets_its_share_of_each_batch(sizes: tuple[int, int], seed: int, parts: int) -> None:
    total, batch = sizes
    for start, count in cuts(total, parts):
        plan = BatchPlan(total, start, count, batch, seed)
        for number in range(plan.per_epoch):
            assert abs(len(plan.local(0, number)) - count / plan.per_epoch) < 2


@given(set_and_batch(), seeds, st.floats(0.0, 0.99))
def test_overlap_takes_an_exact_number_of_samples_from_the_next_batch_only(
    sizes: tuple[int, int], seed: int, overlap: float
) -> None:
    total, batch = sizes
    plain, plan = whole(total, batch, seed), whole(total, batch, seed, overlap)
    nb = plan.per_epoch
    shared = round(overlap * (total // nb)) if nb > 1 else 0
    for number in range(nb):
        mine = set(plain.local(3, number).tolist())
        got = plan.local(3, number).tolist()
        assert got == sorted(set(got)), "ascending and without repetition"
        assert mine <= set(got)
        extra = set(got) - mine
        assert len(extra) == shared
        assert extra <= set(plain.local(3, (number + 1) % nb).tolist())


@given(set_and_batch(), seeds)
def test_positions_ascend_and_are_drawn_again_alike(sizes: tuple[int, int], seed: int) -> None:
    """The same (seed, epoch, number) gives the same batch, also after other epochs were asked for."""
    plan = whole(*sizes, seed)
    first = [plan.local(4, b).tolist() for b in range(plan.per_epoch)]
    plan.local(5, 0)
    assert [plan.local(4, b).tolist() for b in range(plan.per_epoch)] == first
    assert all(positions == sorted(positions) for positions in first)


def test_epochs_and_seeds_give_other_batches() -> None:
    first = whole(1000, 100, seed=1).local(0, 0).tolist()
    assert whole(1000, 100, seed=1).local(1, 0).tolist() != first
    assert whole(1000, 100, seed=2).local(0, 0).tolist() != first


def test_each_sample_is_equally_likely_in_each_batch() -> None:
    hits = np.zeros((4, 14))
    for epoch in range(2000):
        plan = whole(14, 4, seed=0)
        for number in range(4):
            hits[number, plan.local(epoch, number)] += 1
    assert abs(hits - 500).max() < 100


@pytest.mark.parametrize("batch", [None, 37])
def test_full_batch_is_the_whole_shard_in_order(batch: int | None) -> None:
    plan = BatchPlan(37, 5, 9, batch, seed=3, overlap=0.5)
    assert plan.per_epoch == 1
    assert plan.local(0, 0).tolist() == list(range(9))
    assert plan.size(0, 0) == 37


def test_the_batches_of_an_epoch_make_up_the_set_and_the_shard() -> None:
    plan = BatchPlan(50, 10, 20, 16, seed=3)
    assert plan.per_epoch == 4
    assert sum(plan.size(number, epoch=1) for number in range(4)) == 50
    assert sum(len(plan.local(1, number)) for number in range(4)) == 20


def test_an_empty_shard_gets_empty_batches() -> None:
    plan = BatchPlan(10, 10, 0, 4, seed=0, overlap=0.5)
    assert [plan.local(0, b).tolist() for b in range(3)] == [[], [], []]
    assert plan.size(0, 0) == whole(10, 4, 0, 0.5).size(0, 0)


@pytest.mark.parametrize(
    ("batch", "overlap", "text"),
    [
        (11, 0.0, "only 10 samples"),
        (0, 0.0, "at least one sample"),
        (-3, 0.0, "at least one sample"),
        (5, 1.0, "less than 1"),
        (5, -0.1, "at least 0"),
        (5, float("nan"), "overlap"),
    ],
)
def test_what_cannot_be_filled_is_refused(batch: int, overlap: float, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        BatchPlan(10, 0, 10, batch, seed=0, overlap=overlap)


def test_a_resized_plan_is_the_plan_of_that_size() -> None:
    plan, other = BatchPlan(50, 10, 20, 16, seed=3, overlap=0.5), BatchPlan(50, 10, 20, 24, seed=3, overlap=0.5)
    resized = plan.resized(24)
    assert (plan.batch, resized.batch, resized.per_epoch) == (16, 24, other.per_epoch)
    for number in range(other.per_epoch):
        assert resized.local(2, number).tolist() == other.local(2, number).tolist()


@pytest.mark.parametrize(
    ("factor", "batch", "larger"), [(1.5, 10, 15), (1.5, 11, 16), (1.1, 3, 4), (2.0, 60, 100), (1e308, 99, 100)]
)
def test_a_grown_batch_is_a_whole_number_larger_and_at_most_the_set(factor: float, batch: int, larger: int) -> None:
    assert BatchGrowth(factor).enlarged(batch, 100) == larger


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"factor": 0.9}, "batch_growth is 0.9.*at least 1"),
        ({"factor": float("nan")}, "batch_growth is nan"),
        ({"factor": True}, "batch_growth is True"),
        ({"every": 0}, "batch_growth_every is 0.*at least 1"),
        ({"every": 1.5}, "batch_growth_every is 1.5"),
        ({"tolerance": -1}, "batch_growth_tolerance is -1.*at least 0"),
        ({"tolerance": float("inf")}, "batch_growth_tolerance is inf"),
    ],
)
def test_growth_that_cannot_be_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        BatchGrowth(**options)


def test_a_batch_that_does_not_exist_is_a_bug() -> None:
    with pytest.raises(IndexError, match="batch 3 of an epoch of 3"):
        whole(10, 4, 0).local(0, 3)


def test_the_order_of_an_epoch_is_prepared_once_and_fast() -> None:
    """60,000 samples in batches of 512: about 5 ms an epoch, 50 us a batch; twenty times that is allowed here."""
    plan = whole(60_000, 512, seed=1)
    prepare, local = [], []
    for epoch in range(5):
        start = time.perf_counter()
        plan.local(epoch, 0)
        prepared = time.perf_counter()
        for number in range(plan.per_epoch):
            plan.local(epoch, number)
        prepare.append(prepared - start)
        local.append((time.perf_counter() - prepared) / plan.per_epoch)
    assert min(prepare) < 0.1
    assert min(local) < 0.001
