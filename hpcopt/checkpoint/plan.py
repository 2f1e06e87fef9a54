"""Who writes which part of an array that is the same on all ranks: pure arithmetic.

Large arrays are cut into one slab a rank, so that all ranks write at once; small ones and scalars go to rank 0.
"""

from __future__ import annotations

from typing import NamedTuple

from hpcopt.checkpoint.arrays import Description
from hpcopt.layout.block import blocks

CUT_BYTES = 1 << 20
"""Arrays above this size are cut."""


class Share(NamedTuple):
    """The block of an array that one rank writes: its first element, and its shape."""

    rank: int
    start: tuple[int, ...]
    count: tuple[int, ...]  # type: ignore[assignment]  # a shape; tuple.count is of no use here


def shares(array: Description, ranks: int, cut_bytes: int = CUT_BYTES) -> list[Share]:
    """The blocks of an array, by rank; they cover it without overlap. Ranks without a block are left out.

    >>> shares(Description(False, "<f8", (3, 5)), 2, cut_bytes=0)
    [Share(rank=0, start=(0, 0), count=(3, 3)), Share(rank=1, start=(0, 3), count=(3, 2))]
    """
    if array.nbytes <= cut_bytes or not array.shape:
        return [Share(0, (0,) * len(array.shape), array.shape)]
    longest = max(range(len(array.shape)), key=array.shape.__getitem__)
    found = []
    for rank, piece in enumerate(blocks(array.shape[longest], ranks)):
        if piece.count:
            start = tuple(piece.start if place == longest else 0 for place in range(len(array.shape)))
            count = tuple(piece.count if place == longest else size for place, size in enumerate(array.shape))
            found.append(Share(rank, start, count))
    return found
