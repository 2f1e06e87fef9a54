"""What every objective answers alike whose variables are cut over the ranks: sums over them, and what it cannot offer.

Shapes: n numbers of w on this rank, k and l stacked vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.objective import vectors
from hpcopt.objective.protocol import Batch, Vector


class CutVariables:
    """Products of vectors of which every rank holds some numbers, and methods for which that is not enough.

    Attributes:
        comm: all ranks.
        counts: whether this rank's numbers enter sums over the ranks; not where another one does that for the same.
        reduces_products: ``dot`` and ``inner`` are reductions, which have the same bits on all ranks.
        held: what keeps a method from working, for messages.
        remedy: what has all that such a method needs.
    """

    comm: Communicator
    counts = True
    reduces_products = True
    held = "is cut over the ranks: they hold blocks of its layers and none of them whole"
    remedy = "layout = 'data'"

    @property
    def deterministic(self) -> bool:
        """Nothing is drawn."""
        return True

    def release(self, gradient: Vector) -> None:
        """Nothing: gradients are a rank's own numbers only and their memory is not kept."""

    def dot(self, x: Vector, y: Vector) -> float:
        """x^T y over all ranks, accumulated in float64. *Collective*, one reduction."""
        own = vectors.dot(x, y) if self.counts else 0.0
        return self.comm.reduce_scalars([own], label="dot")[0]

    def inner(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """X Y^T over all ranks for (k, n) and (l, n), float64 on the CPU. *Collective*, one reduction."""
        products = vectors.inner(x, y) if self.counts else torch.zeros(len(x), len(y), dtype=torch.float64)
        sums = self.comm.reduce_scalars(products.flatten().tolist(), label="dot")
        return torch.tensor(sums, dtype=torch.float64).view(products.shape)

    def agree(self, *values: float) -> tuple[float, ...]:
        """Rank 0's numbers on all ranks. *Collective*."""
        return values if self.comm.size == 1 else tuple(self.comm.broadcast_scalars(values))

    def share(self, batch: Batch) -> float:
        """The part of the batch's instances that this rank's group holds."""
        return batch.count / batch.total

    @property
    def local(self) -> NoReturn:
        """Not offered: a rank's function of its own block needs all other ranks."""
        self._refuse("a method whose ranks iterate on their own, such as apts,")

    def value_and_gradients(self, w: Vector, batch: Batch) -> NoReturn:
        """Not offered, as ``local``."""
        self._refuse("a method whose ranks iterate on their own, such as apts,")

    def combine(self, vector: Vector, scalars: Sequence[float], own: Sequence[float] = ()) -> NoReturn:
        """Not offered, as ``local``."""
        self._refuse("a method whose ranks iterate on their own, such as apts,")

    def parameter_tensors(self) -> NoReturn:
        """Not offered: no rank holds a whole tensor."""
        self._refuse("a rule for whole layers, such as lars,")

    @property
    def kronecker(self) -> NoReturn:
        """Not offered, as ``parameter_tensors``."""
        self._refuse('preconditioner = "kronecker"', "another preconditioner")

    def _refuse(self, what: str, instead: str = "another method") -> NoReturn:
        raise UsageError(
            f"{what} cannot work on a network that {self.held}. Use {self.remedy}, or {instead}.",
            collective=True,
        )
