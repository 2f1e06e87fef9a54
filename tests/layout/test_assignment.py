"""Items of unequal cost are spread evenly, the same way on every rank."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcopt.layout.assignment import balanced_assignment

costs_ = st.lists(st.integers(0, 1000), max_size=100)
parts_ = st.integers(1, 64)


def loads(costs, owners, parts):
    return [sum(cost for cost, o in zip(costs, owners, strict=True) if o == part) for part in range(parts)]


@given(costs=costs_, parts=parts_)
def test_every_item_has_an_owner_that_exists(costs, parts):
    owners = balanced_assignment(costs, parts)
    assert len(owners) == len(costs)
    assert all(0 <= part < parts for part in owners)


@given(costs_, parts_)
def test_the_largest_load_is_within_graham_s_bound(costs, parts):
    largest = max(loads(costs, balanced_assignment(costs, parts), parts))
    # sum / parts + (1 - 1 / parts) * dearest bounds any list scheduling (Graham 1969)
    assert largest <= sum(costs) / parts + (1 - 1 / parts) * max(costs, default=0) + 1e-9


@given(st.integers(0, 64), parts_)
def test_with_fewer_items_than_parts_no_part_holds_two(n, parts):
    owners = balanced_assignment([1.0] * min(n, parts), parts)
    assert len(set(owners)) == len(owners)


@pytest.mark.parametrize(
    ("costs", "parts", "expected"),
    [
        ([5, 4, 3, 3, 3], 2, [0, 1, 1, 0, 1]),
        ([1, 1, 1, 1], 4, [0, 1, 2, 3]),
        ([2, 2], 4, [0, 1]),
        ([], 3, []),
    ],
)
def test_ties_go_to_the_lower_index(costs, parts, expected):
    assert balanced_assignment(costs, parts) == expected


@pytest.mark.parametrize(("costs", "parts"), [([1], 0), ([-1], 2), ([math.nan], 2), ([1, math.inf], 2)])
def test_costs_without_meaning_are_refused(costs, parts):
    with pytest.raises(ValueError, match=r"parts = 0|not a finite number"):
        balanced_assignment(costs, parts)
