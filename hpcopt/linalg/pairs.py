"""The last steps and gradient changes of a quasi-Newton method, with all their inner products.

Shapes: n parameters, m pairs at most, k pairs stored. Everything a limited-memory model needs of the n-vectors is in
the small Gram matrix (Chen, Wang and Zhou 2014, "Large-scale L-BFGS using MapReduce"), so that one product of stacked
vectors an iteration is all that is reduced when w is spread over ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Inner = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""X Y^T for stacked vectors (k, n) and (l, n): (k, l), float64, on the CPU; *collective* when w is partitioned."""


@dataclass
class PairMemory:
    """A ring of pairs (s, y) with one free slot, in which a new pair is written before it is known whether to keep it.

    Attributes:
        rows: (2 (m + 1), n), rows 2 i and 2 i + 1 are s and y of slot i.
        gram: (2 (m + 1), 2 (m + 1)) float64 on the CPU, the inner products of ``rows``.
        stored: number of pairs kept, k.
        free: the slot that the next pair is written to.
    """

    rows: torch.Tensor
    gram: torch.Tensor
    stored: int = 0
    free: int = 0

    @classmethod
    def empty(cls, like: torch.Tensor, memory: int) -> PairMemory:
        """No pairs yet, room for ``memory`` of them, of the size, precision and device of the vector ``like`` (n,)."""
        rows = like.new_zeros(2 * (memory + 1), like.numel())
        return cls(rows, torch.zeros(len(rows), len(rows), dtype=torch.float64))

    @property
    def slots(self) -> list[int]:
        """The slots in use, oldest first."""
        count = len(self.rows) // 2
        return [(self.free - self.stored + i) % count for i in range(self.stored)]

    def offer(self, s: torch.Tensor, y: torch.Tensor, inner: Inner) -> None:
        """Write a pair to the free slot and take its products with all pairs. One call of ``inner``."""
        pair = self.rows[2 * self.free : 2 * self.free + 2]
        pair[0], pair[1] = s, y
        products = inner(pair, self.rows)
        self.gram[2 * self.free : 2 * self.free + 2] = products
        self.gram[:, 2 * self.free : 2 * self.free + 2] = products.T

    def keep(self) -> None:
        """Keep the pair in the free slot; the oldest one goes when there are more than m."""
        count = len(self.rows) // 2
        self.free = (self.free + 1) % count
        self.stored = min(self.stored + 1, count - 1)

    def forget(self) -> None:
        """Drop all pairs."""
        self.stored = 0

    def offered(self) -> tuple[float, float, float]:
        """s^T s, s^T y and y^T y of the pair in the free slot."""
        s, y = 2 * self.free, 2 * self.free + 1
        return float(self.gram[s, s]), float(self.gram[s, y]), float(self.gram[y, y])

    def blocks(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """S^T S, S^T Y and Y^T Y of the pairs kept, each (k, k), oldest first."""
        steps = [2 * slot for slot in self.slots]
        changes = [2 * slot + 1 for slot in self.slots]
        rows, columns = self.gram[steps], self.gram[changes]
        return rows[:, steps], rows[:, changes], columns[:, changes]

    def products(self, vector: torch.Tensor, inner: Inner) -> torch.Tensor:
        """Inner products (2 (m + 1),) of ``vector`` (n,) with all rows. One call of ``inner``."""
        return inner(vector[None], self.rows)[0]

    def combine(self, coefficients: torch.Tensor) -> torch.Tensor:
        """The vector (n,) whose coefficients (2 (m + 1),) over the rows are given."""
        return coefficients.to(self.rows) @ self.rows
