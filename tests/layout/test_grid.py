"""Ranks and coordinates of a process grid are two names for the same thing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcopt.layout.grid import ProcessGrid, process_grid

sizes = st.integers(1, 64)


@given(sizes)
def test_the_default_grid_is_the_squarest_that_fills_the_ranks(size):
    grid = process_grid(size)
    assert grid.rows * grid.columns == size
    assert grid.rows <= grid.columns
    squarer = range(grid.rows + 1, grid.columns)
    assert not any(size % rows == 0 and rows <= size // rows for rows in squarer)


@given(sizes)
def test_rank_and_coordinates_are_inverse(size):
    grid = process_grid(size)
    assert [grid.rank(*grid.coordinates(rank)) for rank in range(size)] == list(range(size))


@given(sizes)
def test_rows_hold_every_rank_once(size):
    grid = process_grid(size)
    assert [rank for row in range(grid.rows) for rank in grid.row_members(row)] == list(range(size))


@given(sizes)
def test_members_share_their_row(size):
    grid = process_grid(size)
    for rank in range(size):
        row, column = grid.coordinates(rank)
        assert grid.row_members(row)[column] == rank


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [((6,), (2, 3)), ((7,), (1, 7)), ((6, 3), (3, 2)), ((6, None, 1), (6, 1)), ((6, 6, 1), (6, 1)), ((1,), (1, 1))],
)
def test_expected_grids(arguments, expected):
    assert process_grid(*arguments) == expected


@pytest.mark.parametrize(
    "arguments", [(6, 4), (6, None, 4), (6, 2, 2), (6, 0), (6, -2, -3), (6, None, 0), (0,), (3, 4)]
)
def test_a_grid_that_the_ranks_do_not_fill_is_refused(arguments):
    with pytest.raises(ValueError, match=str(arguments[0])):
        process_grid(*arguments)


def test_what_is_outside_the_grid_is_refused():
    grid = ProcessGrid(2, 3)
    for outside in (6, -1):
        with pytest.raises(ValueError, match="2 x 3"):
            grid.coordinates(outside)
    for row, column in ((2, 0), (0, 3), (-1, 0)):
        with pytest.raises(ValueError, match="2 x 3"):
            grid.rank(row, column)
