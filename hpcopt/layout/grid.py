"""Ranks arranged in a two-dimensional grid, row by row, as pure arithmetic."""

from __future__ import annotations

from typing import NamedTuple


class ProcessGrid(NamedTuple):
    """A grid of ``rows`` times ``columns`` ranks; rank = row * columns + column.

    Attributes:
        rows: number of rows, at least 1.
        columns: number of columns, at least 1.
    """

    rows: int
    columns: int

    @property
    def size(self) -> int:
        """Number of ranks in the grid."""
        return self.rows * self.columns

    def coordinates(self, rank: int) -> tuple[int, int]:
        """Return (row, column) of a rank.

        Raises:
            ValueError: the rank is not in the grid.
        """
        if not 0 <= rank < self.size:
            raise ValueError(f"rank {rank} is not in a grid of {self.rows} x {self.columns} ranks")
        return divmod(rank, self.columns)

    def rank(self, row: int, column: int) -> int:
        """Return the rank at (row, column).

        Raises:
            ValueError: there is no such row or column.
        """
        if not (0 <= row < self.rows and 0 <= column < self.columns):
            raise ValueError(f"({row}, {column}) is not in a grid of {self.rows} x {self.columns} ranks")
        return row * self.columns + column

    def row_members(self, row: int) -> list[int]:
        """Return the ranks of one row, by ascending column."""
        return [self.rank(row, column) for column in range(self.columns)]
