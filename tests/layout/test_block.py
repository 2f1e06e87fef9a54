"""Every item belongs to exactly one block, whatever the number of parts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcopt.layout.block import Block, block, blocks, owner

items = st.integers(0, 10_000)
parts_ = st.integers(1, 64)


@given(items, parts_)
def test_blocks_tile_the_items_without_gap_or_overlap(n, parts):
    position = 0
    for part in blocks(n, parts):
        assert part.start == position
        assert part.stop == part.start + part.count
        position = part.stop
    assert position == n


@given(items, parts_)
def test_sizes_differ_by_at_most_one_and_the_longer_come_first(n, parts):
    sizes = [part.count for part in blocks(n, parts)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


@given(st.integers(0, 200), parts_)
def test_owner_is_the_part_whose_block_holds_the_item(n, parts):
    held_by = [i for i in range(parts) for _ in range(block(n, parts, i).count)]
    assert [owner(n, parts, index) for index in range(n)] == held_by


@given(parts_, st.data())
def test_with_fewer_items_than_parts_the_last_parts_are_empty(parts, data):
    n = data.draw(st.integers(0, parts - 1))
    assert [part.count for part in blocks(n, parts)] == [1] * n + [0] * (parts - n)


@pytest.mark.parametrize(
    ("n", "parts", "expected"),
    [
        (7, 3, [(0, 3), (3, 2), (5, 2)]),
        (8, 4, [(0, 2), (2, 2), (4, 2), (6, 2)]),
        (2, 4, [(0, 1), (1, 1), (2, 0), (2, 0)]),
        (0, 2, [(0, 0), (0, 0)]),
    ],
)
def test_a_block_is_its_start_and_its_count(n, parts, expected):
    assert blocks(n, parts) == [Block(*pair) for pair in expected]


def test_a_block_selects_its_items():
    assert list(range(7))[block(7, 3, 1).slice] == [3, 4]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: block(3, 2, 2), "part i = 2"),
        (lambda: block(3, 2, -1), "part i = -1"),
        (lambda: blocks(-1, 2), "n = -1"),
        (lambda: blocks(3, 0), "parts = 0"),
        (lambda: owner(3, 2, 3), "index = 3"),
        (lambda: owner(0, 2, 0), "index = 0"),
    ],
)
def test_what_does_not_exist_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
