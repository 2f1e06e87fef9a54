"""A rank's diagonal block of the Gauss-Newton matrix of a cut network, and the phase in which it is solved.

Letters and shapes are those of ``ExplicitLinearization``. The phase follows ``NetworkObjective.pace``; nothing in it
communicates but the pace itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.objective.protocol import Batch, BlockFactors, LayerColumns, Vector
from hpcopt.objective.reductions import tell

if TYPE_CHECKING:
    from hpcopt.objective.network.explicit import ExplicitLinearization
    from hpcopt.objective.network.objective import NetworkObjective


class NetworkBlock:
    """G_pp at one point, from the factors of this rank's columns of the Jacobian.

    Args:
        objective: the network.
        linear: the factors.
        batch: the instances.
        memory: most bytes that a direct solution may take: what the factors leave of the objective's limit.
    """

    def __init__(self, objective: NetworkObjective, linear: ExplicitLinearization, batch: Batch, memory: int) -> None:
        linear.block_factors()  # raises on all ranks where they are not kept
        self._objective, self._linear, self._batch = objective, linear, batch
        self._held = objective.partition.blocks(objective.comm.rank)
        self.samples, self.outputs, self.memory = batch.count, objective.outputs, memory
        self.weight_decay = objective.weight_decay
        self.shapes: Sequence[tuple[int, int]] = [
            (held.inputs.count + held.biased, held.outputs.count) for held in self._held
        ]

    def begin(self) -> None:
        """The phase begins. *Collective* where the pace's is."""
        if self._objective.pace is not None:
            self._objective.pace.begin()

    def goes_on(self, done: int) -> bool:
        """Whether this rank may make another iteration after ``done`` of them."""
        return self._objective.pace is None or self._objective.pace.goes_on(done)

    def end(self) -> None:
        """This rank has ended the phase. *Collective* where the pace's is."""
        if self._objective.pace is not None:
            self._objective.pace.end()

    def product(self, v: Vector, by_layer: bool = False) -> Vector:
        """G_pp v, a new vector (n,)."""
        return self._linear.block_product(v, by_layer)

    def factors(self) -> BlockFactors:
        """The columns of J in factors, with ones in the inputs for biases. M is not copied where it is one piece."""
        pieces = self._linear.block_factors()
        layers = []
        for held in self._held:
            inputs = _joined([piece.inputs[held.number] for piece in pieces])
            if held.biased:
                inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
            units = None
            if held.number < self._objective.partition.layers:
                units = _joined([piece.units[held.number] for piece in pieces]).to(inputs.dtype)
            place = slice(held.start, held.start + inputs.shape[1] * held.outputs.count)
            layers.append(LayerColumns(inputs, units, held.outputs.slice, place))
        curvatures = [piece.curvature for piece in pieces if piece.curvature is not None]
        return BlockFactors(layers, _joined(curvatures) if curvatures else None)

    def mean(self, direction: Vector) -> Vector:
        """The direction itself: no other rank holds these variables."""
        return direction

    def share(self, iterations: int, products: float, finite: bool) -> tuple[tuple[int, ...], bool]:
        """What all ranks came to; their mean work is counted. *Collective*, one reduction of 3 numbers a rank."""
        return self.share_over(self._objective.comm, iterations, products, finite)

    def share_over(
        self, comm: Communicator, iterations: int, products: float, finite: bool
    ) -> tuple[tuple[int, ...], bool]:
        """As ``share``, over the ranks of ``comm``, which may be more than those of the grid. *Collective*."""
        counts, work, found = zip(*tell(comm, [iterations, products, finite], "block"), strict=True)
        self._objective.count_products(self._batch, sum(work) / comm.size)
        return tuple(map(int, counts)), all(found)


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The instances of all pieces in one array; that of a single piece itself."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
