"""A fully connected network with every layer on ranks of its own, as in Wang et al. 2018 (arXiv:1802.00130).

The neurons of layer m are cut in P_m groups. Node (m, a, b), one rank, holds the block of layer m between group a of
the layer before and its own group b; no rank holds blocks of two layers. Pure arithmetic; letters as in
``hpcopt.layout.network``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from hpcopt.errors import UsageError
from hpcopt.layout.network import NetworkLayout, Node


class DisjointLayout(NetworkLayout):
    """The P_{m-1} P_m blocks of every layer on as many ranks, in the order of the layers and then of a and b.

    Args:
        sizes: n_0 ... n_L.
        split: P_0 ... P_L.

    Attributes:
        split: as given.

    Raises:
        UsageError: ``sizes`` is no network, or ``split`` does not fit it.
    """

    def __init__(self, sizes: Sequence[int], split: Sequence[int]) -> None:
        super().__init__(sizes)
        self.split = tuple(split)
        if len(self.split) != len(self.sizes) or min(self.split) < 1:
            raise UsageError(
                f"split = {list(split)} does not fit a network with sizes = {list(sizes)}: it must hold a number of "
                f"groups, at least 1, for the features and for the neurons of each layer, {len(self.sizes)} in all."
            )
        for number, (size, groups) in enumerate(zip(self.sizes, self.split, strict=True)):
            if size < groups:
                layer = "features" if number == 0 else f"neurons of layer {number}"
                raise UsageError(
                    f"split = {list(split)} cuts the {size} {layer} in {groups} groups: every group needs at least "
                    f"one. Let its entry {number} be at most {size}."
                )
        self.ranks = ranks_of(self.split)

    def groups(self, layer: int) -> int:
        """P_m."""
        return self.split[layer]

    def nodes(self, rank: int) -> list[Node]:
        """The one block of a rank.

        Raises:
            ValueError: there is no such rank.
        """
        left = rank
        for layer, (before, groups) in enumerate(pairwise(self.split), 1):
            if 0 <= left < before * groups:
                return [Node(layer, *divmod(left, groups))]
            left -= before * groups
        raise ValueError(f"rank {rank} is not one of the {self.ranks} ranks of split = {list(self.split)}")

    @property
    def described(self) -> dict[str, Any]:
        """The groups of every layer."""
        return {"mapping": "paper", "split": list(self.split)}


def ranks_of(split: Sequence[int]) -> int:
    """How many ranks a split takes: the sum of P_{m-1} P_m."""
    return sum(before * groups for before, groups in pairwise(split))


def disjoint_split(sizes: Sequence[int], ranks: int) -> tuple[int, ...]:
    """The P_0 ... P_L that take so many ranks and have the smallest largest block; ties go to fewer groups at the end.

    By dynamic programming over the layers: for every number of groups of a layer and of ranks so far, the smallest
    largest block that has been possible.

    >>> disjoint_split([784, 128, 64, 10], 6)
    (4, 1, 1, 1)

    Raises:
        UsageError: there are fewer ranks than layers, or the network is too narrow for so many.
    """
    least = len(sizes) - 1
    if ranks < least:
        raise UsageError(
            f'mapping = "paper" puts each of the {least} layers of a network with sizes = {list(sizes)} on ranks of '
            f"its own, but there {'is' if ranks == 1 else 'are'} only {ranks}. Start at least {least} ranks, or use "
            'mapping = "grid".'
        )
    # For P_m and the ranks of the layers 1 ... m: the largest block, and the P_{m-1} with which it is so small.
    best = {p: np.where(np.arange(ranks + 1) == 0, 0.0, np.inf) for p in range(1, min(sizes[0], ranks) + 1)}
    tables: list[dict[int, np.ndarray]] = []
    for before, size in pairwise(sizes):
        best, table = _next_layer(best, before, size, ranks)
        tables.append(table)
    last = min(best, key=lambda p: (best[p][ranks], p))
    if not np.isfinite(best[last][ranks]):
        raise UsageError(
            f'mapping = "paper" cannot put a network with sizes = {list(sizes)} on {ranks} ranks: no numbers of groups '
            "P_m, at most one a neuron, have P_{m-1} P_m blocks of the layers that add up to it. Start another number."
        )
    split, left = [last], ranks
    for table in reversed(tables):
        split.append(int(table[split[-1]][left]))
        left -= split[-1] * split[-2]
    return tuple(reversed(split))


def _next_layer(
    best: dict[int, np.ndarray], before: int, size: int, ranks: int
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """From the largest blocks up to a layer of ``before`` neurons to those up to the next one, of ``size``."""
    found, table = {}, {}
    for groups in range(1, min(size, ranks) + 1):
        found[groups], table[groups] = np.full(ranks + 1, np.inf), np.zeros(ranks + 1, dtype=np.int64)
        for p, largest in best.items():
            taken = p * groups
            if taken > ranks:
                break
            block = -(-before // p) * -(-size // groups)
            reached = np.maximum(largest[: ranks + 1 - taken], block)
            better = reached < found[groups][taken:]
            found[groups][taken:][better] = reached[better]
            table[groups][taken:][better] = p
    return found, table
