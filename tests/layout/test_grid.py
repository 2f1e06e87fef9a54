"""Ranks and coordinates of a process grid are two names for the same thing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcopt.layout.grid import ProcessGrid

grids = st.builds(ProcessGrid, st.integers(1, 9), st.integers(1, 9))


@given(grids)
def test_rank_and_coordinates_are_inverse(grid):
    assert [grid.rank(*grid.coordinates(rank)) for rank in range(grid.size)] == list(range(grid.size))


@given(grids)
def test_rows_hold_every_rank_once(grid):
    assert [rank for row in range(grid.rows) for rank in grid.row_members(row)] == list(range(grid.size))


@given(grids)
def test_members_share_their_row(grid):
    for rank in range(grid.size):
        row, column = grid.coordinates(rank)
        assert grid.row_members(row)[column] == rank


def test_what_is_outside_the_grid_is_refused():
    grid = ProcessGrid(2, 3)
    for outside in (6, -1):
        with pytest.raises(ValueError, match="2 x 3"):
            grid.coordinates(outside)
    for row, column in ((2, 0), (0, 3), (-1, 0)):
        with pytest.raises(ValueError, match="2 x 3"):
            grid.rank(row, column)
