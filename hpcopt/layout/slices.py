"""Division of a flat vector of tensors into contiguous slices that cut no row of a tensor; pure arithmetic.

Rows are counted along the first dimension that is longer than 1. Shapes: n numbers in all tensors, R slices.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from hpcopt.layout.block import Block


class RowBlock(NamedTuple):
    """The rows of a tensor that lie in a slice; none of them is possible.

    Attributes:
        start: where in the tensor the first of them begins.
        shape: of the rows together, with as many dimensions as the tensor has.
        place: where in the slice they lie.
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]
    place: slice


def row_slices(shapes: Sequence[Sequence[int]], parts: int) -> list[Block]:
    """Cut n numbers in ``parts`` slices, each end at the row nearest to that of equal slices; some may be empty.

    >>> [tuple(part) for part in row_slices([(2, 5), (3,)], 3)]
    [(0, 5), (5, 5), (10, 3)]

    Args:
        shapes: of the tensors, one after the other in the vector; each with a dimension at least.
        parts: R.
    """
    ends = list(accumulate(map(math.prod, shapes)))
    cuts = [_nearest(shapes, ends, part * ends[-1] // parts) for part in range(1, parts)]
    return [Block(first, last - first) for first, last in zip([0, *cuts], [*cuts, ends[-1]], strict=True)]


def rows_within(shapes: Sequence[Sequence[int]], part: Block) -> list[RowBlock]:
    """What a slice of ``row_slices`` holds of each tensor."""
    found, first = [], 0
    for shape in shapes:
        last = first + math.prod(shape)
        low, high = (min(max(end, first), last) for end in (part.start, part.stop))
        axis, row = _rows(shape)
        start = (*[0] * axis, (low - first) // row, *[0] * (len(shape) - axis - 1))
        block = (*shape[:axis], (high - low) // row, *shape[axis + 1 :])
        inside = min(max(low - part.start, 0), part.count)
        found.append(RowBlock(start, block, slice(inside, inside + high - low)))
        first = last
    return found


def _nearest(shapes: Sequence[Sequence[int]], ends: Sequence[int], place: int) -> int:
    """The beginning or end of a row that is nearest to a place in the vector."""
    tensor = min(bisect_right(ends, place), len(ends) - 1)
    first = ends[tensor] - math.prod(shapes[tensor])
    _, row = _rows(shapes[tensor])
    return first + (place - first + row // 2) // row * row


def _rows(shape: Sequence[int]) -> tuple[int, int]:
    """The dimension along which rows are counted, and the numbers in each of them."""
    axis = next((axis for axis, length in enumerate(shape) if length != 1), len(shape) - 1)
    return axis, max(math.prod(shape[axis + 1 :]), 1)
