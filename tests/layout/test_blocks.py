"""Modules are divided among ranks whole and evenly, and a division that is not possible says what is."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcopt.errors import UsageError
from hpcopt.layout.blocks import ParameterGroup, divide_groups, runs, variable_grid

sizes_ = st.lists(st.integers(1, 10_000), min_size=1, max_size=40)


def groups_of(sizes: list[int]) -> list[ParameterGroup]:
    """Groups of two tensors each, such as weight and bias."""
    return [ParameterGroup(f"layer{k}", (2 * k, 2 * k + 1), size) for k, size in enumerate(sizes)]


@given(sizes=sizes_, parts=st.integers(1, 40))
def test_every_tensor_is_in_one_block_and_every_block_has_some(sizes: list[int], parts: int) -> None:
    parts = min(parts, len(sizes))
    blocks = divide_groups(groups_of(sizes), parts)
    assert len(blocks) == parts
    assert all(blocks)
    assert sorted(tensor for tensors in blocks for tensor in tensors) == list(range(2 * len(sizes)))


@given(sizes=sizes_, parts=st.integers(1, 40))
def test_the_tensors_of_a_group_stay_together_in_ascending_order(sizes: list[int], parts: int) -> None:
    for tensors in divide_groups(groups_of(sizes), min(parts, len(sizes))):
        assert list(tensors) == sorted(tensors)
        assert all(tensor ^ 1 in tensors for tensor in tensors)


def test_blocks_are_balanced_by_size_and_not_by_number() -> None:
    assert divide_groups(groups_of([784 * 512 + 512, 512 * 256 + 256, 256 * 10 + 10]), 2) == [(0, 1), (2, 3, 4, 5)]


def test_too_few_groups_are_named_with_their_sizes() -> None:
    with pytest.raises(
        UsageError,
        match=r"form 2 groups.*among 3 ranks: layer0 \(1,000 numbers\), layer1 \(7 numbers\).*raise parallel\.data",
    ):
        divide_groups(groups_of([1000, 7]), 3)


@pytest.mark.parametrize(
    ("ranks", "shards", "expected"), [(1, 1, (1, 1)), (3, 1, (1, 3)), (3, 3, (3, 1)), (4, 2, (2, 2)), (6, 2, (2, 3))]
)
def test_shards_are_rows_and_blocks_are_columns(ranks: int, shards: int, expected: tuple[int, int]) -> None:
    assert tuple(variable_grid(ranks, shards)) == expected


@pytest.mark.parametrize(("ranks", "shards"), [(3, 2), (4, 3), (2, 4), (4, 0), (4, -2)])
def test_shards_that_do_not_divide_the_ranks_are_refused_with_those_that_do(ranks: int, shards: int) -> None:
    divisors = ", ".join(str(d) for d in (1, 2, 3, 4) if d <= ranks and ranks % d == 0)
    with pytest.raises(UsageError, match=rf"parallel\.data = {shards} does not fit {ranks} ranks.*\({divisors}\)"):
        variable_grid(ranks, shards)


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.randoms())
def test_neighbouring_ranges_become_one_run(chosen, random) -> None:
    lengths = [random.randint(1, 5) for _ in chosen]
    ranges = [slice(sum(lengths[:k]), sum(lengths[: k + 1])) for k in range(len(chosen))]
    found = runs(part for part, wanted in zip(ranges, chosen, strict=True) if wanted)
    numbers = [i for part, wanted in zip(ranges, chosen, strict=True) if wanted for i in range(part.start, part.stop)]
    assert [i for run in found for i in range(run.start, run.stop)] == numbers
    assert all(one.stop < other.start for one, other in pairwise(found))
