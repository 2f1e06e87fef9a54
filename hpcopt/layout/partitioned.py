"""An array of which every rank holds one block."""

from __future__ import annotations

from typing import Any, NamedTuple


class Partitioned(NamedTuple):
    """This rank's block of an array that is spread over the ranks. Every element is on one rank; a block may be empty.

    Attributes:
        data: the block, a torch tensor or NumPy array.
        shape: of the whole array, the same on all ranks.
        start: where in it the block's first element is.
    """

    data: Any
    shape: tuple[int, ...]
    start: tuple[int, ...]
