"""A listener that remembers what the loop tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Ear:
    """Keeps the rows of a record, on the rank that is told."""

    def __init__(self) -> None:
        self.iterations: list[dict[str, Any]] = []
        self.evaluations: list[dict[str, Any]] = []
        self.times: list[tuple[int, Sequence[float], Sequence[float], Sequence[float]]] = []

    def iteration(self, **columns: Any) -> None:
        """One row."""
        self.iterations.append(columns)

    def evaluation(self, **columns: Any) -> None:
        """One row."""
        self.evaluations.append(columns)

    def rank_times(
        self, iteration: int, step: Sequence[float], waited: Sequence[float], others: Sequence[float]
    ) -> None:
        """One number a rank of each."""
        self.times.append((iteration, step, waited, others))
