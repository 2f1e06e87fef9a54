"""An array of which every rank holds one block."""

from __future__ import annotations

from typing import Any, NamedTuple


class Partitioned(NamedTuple):
    """This rank's block of an array that is spread over the ranks. Every element is on some rank; a block may be empty.

    Attributes:
        data: the block, a torch tensor or NumPy array.
        shape: of the whole array, the same on all ranks.
        start: where in it the block's first element is.
        saved: whether this rank writes the block to a checkpoint; not where another one writes the same. All read it.
    """

    data: Any
    shape: tuple[int, ...]
    start: tuple[int, ...]
    saved: bool = True

    def to_write(self) -> Partitioned:
        """What this rank writes: the block, or an empty one."""
        return self if self.saved else Partitioned(self.data[:0], self.shape, self.start)
