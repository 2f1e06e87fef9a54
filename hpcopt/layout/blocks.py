"""Division of the variables among the ranks that share samples: whole modules, balanced by size; pure arithmetic.

Shapes: n variables in groups, V blocks, R ranks in D rows of V columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hpcopt.errors import UsageError
from hpcopt.layout.assignment import balanced_assignment
from hpcopt.layout.block import Block
from hpcopt.layout.grid import ProcessGrid


class ParameterGroup(NamedTuple):
    """Parameter tensors that stay together: those of one module, such as weight and bias.

    Attributes:
        name: what the module is called, for messages.
        tensors: numbers of the tensors, in the order in which they form w.
        size: numbers in all of them.
    """

    name: str
    tensors: tuple[int, ...]
    size: int


def variable_grid(ranks: int, shards: int, key: str = "parallel.data") -> ProcessGrid:
    """Arrange R ranks in D = ``shards`` rows: a row shares the samples of a shard, a column varies the same block.

    Args:
        ranks: R.
        shards: D.
        key: what the user calls D, for messages.

    Raises:
        UsageError: there is no such grid.
    """
    if not 1 <= shards <= ranks or ranks % shards:
        fit = ", ".join(str(divisor) for divisor in range(1, ranks + 1) if ranks % divisor == 0)
        raise UsageError(
            f"{key} = {shards} does not fit {ranks} rank{'s' if ranks > 1 else ''}: every shard of the samples is held "
            f"by ranks / {key} ranks. Set it to a divisor of the number of ranks ({fit}), or start another number."
        )
    return ProcessGrid(shards, ranks // shards)


def divide_groups(groups: Sequence[ParameterGroup], parts: int, key: str = "parallel.data") -> list[tuple[int, ...]]:
    """The tensors of each of V = ``parts`` blocks, ascending: groups are kept whole and blocks are balanced by size.

    >>> divide_groups([ParameterGroup("a", (0, 1), 8), ParameterGroup("b", (2,), 5), ParameterGroup("c", (3,), 4)], 2)
    [(0, 1), (2, 3)]

    Args:
        groups: of all variables.
        parts: V.
        key: what the user calls the number of shards, for messages.

    Raises:
        UsageError: there are fewer groups than blocks.
    """
    if len(groups) < parts:
        named = ", ".join(f"{group.name} ({group.size:,} numbers)" for group in groups)
        raise UsageError(
            f"the model's variables form {len(groups)} groups, which cannot be divided among {parts} ranks: {named}. "
            f"The weight and the bias of a module stay together. Start fewer ranks, or raise {key} so that at most "
            f"{len(groups)} ranks share the samples of a shard."
        )
    owners = balanced_assignment([group.size for group in groups], parts)
    tensors: list[list[int]] = [[] for _ in range(parts)]
    for group, part in zip(groups, owners, strict=True):
        tensors[part] += group.tensors
    return [tuple(sorted(own)) for own in tensors]


def runs(ranges: Iterable[slice]) -> list[Block]:
    """Ascending ranges with those that follow each other put together.

    >>> [tuple(run) for run in runs([slice(0, 3), slice(3, 5), slice(9, 10)])]
    [(0, 5), (9, 1)]
    """
    found: list[Block] = []
    for part in ranges:
        if found and found[-1].stop == part.start:
            found[-1] = Block(found[-1].start, part.stop - found[-1].start)
        else:
            found.append(Block(part.start, part.stop - part.start))
    return found
