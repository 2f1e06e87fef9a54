"""Contiguous block distribution of n items over a number of parts, as pure arithmetic.

The first ``n % parts`` parts hold one item more than the others, as in MPI libraries' usual block distribution, so
that sizes differ by one at most. Parts may be empty when there are fewer items than parts.
"""

from __future__ import annotations

from typing import NamedTuple


class Block(NamedTuple):
    """The half-open range ``start .. start + count`` of the items that one part holds.

    Attributes:
        start: index of the first item.
        count: number of items, 0 for an empty part.
    """

    start: int
    count: int  # type: ignore[assignment]  # of items; tuple.count is of no use here

    @property
    def stop(self) -> int:
        """Index one past the last item."""
        return self.start + self.count

    @property
    def slice(self) -> slice:
        """The range as a slice."""
        return slice(self.start, self.start + self.count)

    def within(self, start: int, stop: int) -> Block:
        """The items that lie in ``start .. stop`` too; where there are none, an empty range at the nearest end.

        >>> [tuple(Block(3, 4).within(*ends)) for ends in ((0, 5), (4, 6), (8, 9))]
        [(3, 2), (4, 2), (7, 0)]
        """
        low, high = (min(max(end, self.start), self.stop) for end in (start, stop))
        return Block(low, high - low)


def _check(n: int, parts: int) -> None:
    if n < 0:
        raise ValueError(f"cannot distribute n = {n} items: n must be at least 0")
    if parts < 1:
        raise ValueError(f"cannot distribute over parts = {parts}: there must be at least 1")


def block(n: int, parts: int, i: int) -> Block:
    """Return the range of the n items that part i of ``parts`` holds.

    >>> [tuple(block(7, 3, i)) for i in range(3)]
    [(0, 3), (3, 2), (5, 2)]

    Raises:
        ValueError: n is negative, there is no part, or i is not one of them.
    """
    _check(n, parts)
    if not 0 <= i < parts:
        raise ValueError(f"part i = {i} does not exist: with parts = {parts} it must be 0 to {parts - 1}")
    size, extra = divmod(n, parts)
    return Block(i * size + min(i, extra), size + (i < extra))


def blocks(n: int, parts: int) -> list[Block]:
    """Return the ranges of all parts, in order.

    Raises:
        ValueError: n is negative or there is no part.
    """
    _check(n, parts)
    return [block(n, parts, i) for i in range(parts)]


def owner(n: int, parts: int, index: int) -> int:
    """Return the part that holds item ``index``.

    >>> [owner(7, 3, index) for index in range(7)]
    [0, 0, 0, 1, 1, 2, 2]

    Raises:
        ValueError: n is negative, there is no part, or the item is not one of 0 to n - 1.
    """
    _check(n, parts)
    if not 0 <= index < n:
        raise ValueError(f"item index = {index} does not exist: with n = {n} it must be 0 to {n - 1}")
    size, extra = divmod(n, parts)
    long_parts = extra * (size + 1)
    if index < long_parts:
        return index // (size + 1)
    return extra + (index - long_parts) // size
