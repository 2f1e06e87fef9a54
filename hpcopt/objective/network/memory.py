"""What a linearisation keeps of a batch: the first pieces within a limit of memory; the others are made when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Piece = TypeVar("Piece")
Other = TypeVar("Other")

KEPT_BYTES = 2**30
"""Most memory on a rank for what one linearisation keeps, unless the objective is told another limit."""


PASSING = 8
"""Where not everything fits, a piece takes at most one of so many parts of the limit."""


class Streamed(Generic[Piece]):
    """The pieces of a batch of b instances, in order. *Collective* where making a piece is.

    Args:
        count: b.
        size: most instances in a piece.
        bytes_each: memory that one instance takes on the rank where it takes most.
        limit: bytes that may be in use. Where they do not suffice for all, room is left for one piece in passing.
        make: makes the piece of the instances in a slice of the batch.
    """

    def __init__(self, count: int, size: int, bytes_each: int, limit: int, make: Callable[[slice], Piece]) -> None:
        fits = max(1, limit // max(bytes_each, 1))
        if count > fits:
            size = min(size, fits // PASSING)
        size = max(size, 1)
        rows = [slice(first, min(first + size, count)) for first in range(0, count, size)]
        kept = len(rows) if count <= fits else fits // size - 1
        self._make, self._others = make, rows[kept:]
        self._kept = [make(piece) for piece in rows[:kept]]

    @property
    def complete(self) -> bool:
        """Whether everything is kept, so that nothing is made anew."""
        return not self._others

    def seen(self, view: Callable[[Piece], Other], make: Callable[[slice], Other]) -> Streamed[Other]:
        """The same pieces for another use: those that are kept by a view of each, the others by ``make``."""
        found: Streamed[Other] = Streamed(0, 1, 1, 1, make)
        found._kept, found._others = [view(piece) for piece in self._kept], self._others
        return found

    def groups(self) -> Iterator[list[Piece]]:
        """What is kept, and then every other piece on its own. *Collective* unless ``complete``."""
        yield self._kept
        for rows in self._others:
            yield [self._make(rows)]
