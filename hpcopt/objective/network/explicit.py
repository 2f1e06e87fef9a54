"""Products with the Jacobian of a cut network, from its factors: one reduction each, and none for a rank's block.

    d z^L_c / d W^m_tj of instance i  =  M^m[i, c, j] z^{m-1}[i, t]

so that M and Z stand for J, which is never formed (Wang et al. 2018, arXiv:1802.00130, whose letters are used).
Shapes: n numbers of w on this rank, b instances, C outputs, k directions; in layer m a rank has Z (b, u_m) and
M (b, C, v_m). J_p (b C, n) are the columns of this rank.

Messages, in numbers, where everything is kept: making it on a grid, forward b v_m a layer, factors u_L C once and
b C u_m for m = 2 ... L - 1, and softmax 2 b and b C where outputs are split (``hpcopt.objective.network.pipeline`` has
those with layers on ranks of their own); a product b C; curvatures k b C and k^2 scalars, and k^2 from rank 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch

from hpcopt.errors import UsageError
from hpcopt.layout.network import NetworkLayout
from hpcopt.objective import vectors
from hpcopt.objective.network.block import NetworkBlock
from hpcopt.objective.network.implicit import ImplicitLinearization
from hpcopt.objective.network.losses import whole_hessian_product
from hpcopt.objective.network.memory import Streamed
from hpcopt.objective.network.passes import Kept, LayerView
from hpcopt.objective.protocol import Batch, Vector
from hpcopt.objective.reductions import Packed

if TYPE_CHECKING:
    from hpcopt.objective.network.objective import NetworkObjective

FACTOR_BYTES = 64 * 2**20
"""Size to which the factors of one layer may grow before the instances go in several pieces."""


class Factors(NamedTuple):
    """A rank's columns of the Jacobian on some instances of the batch.

    Attributes:
        rows: which instances.
        inputs: what each of the rank's layers was given, Z (b, u_m), by its number m.
        units: M^m (b, C, v_m) of its hidden layers, in the type that the objective keeps them in. M^L is the identity
            on this rank's outputs and not stored.
        curvature: probabilities (b, C) of all outputs; None where the Hessian of the loss is the identity.
    """

    rows: slice
    inputs: Kept
    units: Kept
    curvature: torch.Tensor | None


class ExplicitLinearization:
    """J, J^T and Gauss-Newton products at one point from the factors of the Jacobian. *Collective*: makes them.

    Args:
        objective: the network, the loss and the samples.
        w: this rank's numbers of the point (n,), which are copied.
        batch: the instances, the same on all ranks.
        limit: most bytes that a rank keeps. The factors of the instances beyond are made anew in every product, which
            costs their messages again.
    """

    def __init__(self, objective: NetworkObjective, w: Vector, batch: Batch, limit: int) -> None:
        self._objective, self._network, self._batch = objective, objective.network, batch
        self._w = w.detach().clone()
        self._layers = self._network.views(self._w)
        self._output_weights: torch.Tensor | None = None
        if objective.partition.layers > 1:
            self._output_weights = self._network.output_weights(self._layers)
        layout, itemsize = objective.partition, w.element_size()
        widest = max((layout.most(layer) for layer in range(1, layout.layers)), default=1)
        size = max(FACTOR_BYTES // (itemsize * objective.outputs * widest), 1)
        each = bytes_each(layout, itemsize)
        self._left = limit - batch.count * each
        self._pieces = Streamed(batch.count, min(objective.micro_batch, size), each, limit, self._factors)

    def jvp(self, v: Vector) -> torch.Tensor:
        """J v (b, C), the same on all ranks. *Collective*, one reduction."""
        moves = self._network.views(v)
        return torch.cat([self._summed(self._push(group, moves)) for group in self._pieces.groups()])

    def vjp(self, u: torch.Tensor) -> Vector:
        """This rank's numbers (n,) of J^T u, for the same u (b, C) on all ranks. *Collective* unless all is kept."""
        total = self._new_vector()
        for group in self._pieces.groups():
            self._pull(group, [u[piece.rows] for piece in group], self._network.views(total))
        return total

    def gauss_newton(self, v: Vector) -> Vector:
        """This rank's numbers of (1/B) J^T B J v + weight_decay v, a new vector. *Collective*, one reduction."""
        moves, total = self._network.views(v), self._new_vector()
        into = self._network.views(total)
        for group in self._pieces.groups():
            self._pull(group, self._bent(group, self._summed(self._push(group, moves))), into)
        self._objective.count_products(self._batch)
        return total.add_(v, alpha=self._objective.weight_decay)

    def curvatures(self, directions: torch.Tensor) -> torch.Tensor:
        """D G D^T for this rank's columns D (k, n) of stacked directions: (k, k), float64, the same on all ranks.

        *Collective*, one reduction, and rank 0's result, since what every rank has of J D^T need not come to the same
        last bits everywhere. Counted as half a product for each direction: only J D^T is computed.
        """
        objective, count = self._objective, len(directions)
        moves = [self._network.views(direction) for direction in directions]
        decays = vectors.inner(directions, directions).flatten().tolist()
        total = torch.zeros(count, count, dtype=torch.float64)
        for group in self._pieces.groups():
            pushed = [self._push(group, move) for move in moves]
            size = sum(part.numel() for part in pushed)
            packed = Packed.empty(size, len(decays), directions)
            torch.cat(pushed, out=packed.vector.view(size // objective.outputs, objective.outputs))
            sums = packed.sum(objective.comm, decays, "curvatures")
            total += objective.weight_decay * torch.tensor(sums, dtype=torch.float64).view(count, count)
            tangents = packed.vector.view(count, size // (count * objective.outputs), objective.outputs)
            bent = torch.stack([torch.cat(self._bent(group, each.clone())) for each in tangents]) if group else tangents
            total += vectors.inner(tangents.reshape(count, -1), bent.reshape(count, -1))
            decays = [0.0] * len(decays)
        objective.count_products(self._batch, count / 2)
        agreed = objective.agree(*total.flatten().tolist())
        return torch.tensor(agreed, dtype=torch.float64).view(count, count)

    @cached_property
    def exact(self) -> ImplicitLinearization | None:
        """Where the factors are rounded, products by sweeps, which are not; they use the activations that are here."""
        if self._objective.stored == self._w.dtype:
            return None
        return ImplicitLinearization(self._objective, self._w, self._batch, 0, self._pieces)

    @property
    def block(self) -> NetworkBlock:
        """This rank's diagonal block of G.

        Raises:
            UsageError: the factors do not fit in the limit of memory.
        """
        return NetworkBlock(self._objective, self, self._batch, self._left)

    def block_product(self, v: Vector, by_layer: bool = False) -> Vector:
        """G_pp v = (1/B) J_p^T B J_p v + weight_decay v, this rank's diagonal block of G. No communication.

        Not counted as work: ranks may need different numbers of these.

        Args:
            v: (n,).
            by_layer: leave out what couples the layers of the rank: one diagonal block a layer.

        Raises:
            UsageError: the factors do not fit in the limit of memory.
        """
        kept, total = self.block_factors(), self._new_vector()
        moves, into = self._network.views(v), self._network.views(total)
        for part in [slice(m, m + 1) for m in range(len(moves))] if by_layer else [slice(None)]:
            for piece in kept:
                self._bend(piece, moves[part], into[part])
        return total.add_(v, alpha=self._objective.weight_decay)

    def block_factors(self) -> list[Factors]:
        """The factors of this rank's columns of J, for all instances in order.

        Raises:
            UsageError: they do not fit in the limit of memory.
        """
        if not self._pieces.complete:
            raise UsageError(
                f"the factors of the Jacobian for {self._batch.count} instances do not fit in the memory limit, but "
                "products with a rank's own block need all of them. Raise memory_limit, take a smaller subset, or "
                "start more ranks.",
                collective=True,
            )
        return next(self._pieces.groups())

    def _factors(self, rows: slice) -> Factors:
        """The factors on some instances of the batch. *Collective*."""
        objective, network = self._objective, self._network
        kept: Kept = {}
        outputs = network.forward(self._layers, objective.rows(self._batch, rows)[0], kept)
        own = objective.split_loss.curvature(outputs)
        curvature = None if own is None else network.gather_outputs(own, "softmax")
        units = network.factors(self._layers, kept, self._output_weights)
        units = {number: each.to(objective.stored) for number, each in units.items()}
        # A value, and as many sweeps through the weights as there are outputs.
        objective.work.values += (1 + objective.outputs) * (rows.stop - rows.start) / objective.samples
        return Factors(rows, kept, units, curvature)

    def _bend(self, piece: Factors, moves: Sequence[LayerView], into: Sequence[LayerView]) -> None:
        """Add (1/B) J^T B J v to the blocks ``into``, for the blocks ``moves`` of v and the instances of a piece."""
        kernels, own = self._network.kernels, self._network.outputs.slice
        sums = self._layers[0].weights.new_zeros(piece.rows.stop - piece.rows.start, self._network.width)
        units = {}
        for move in moves:
            tangents = kernels.affine(piece.inputs[move.number], move.weights, move.biases)
            if move.number in piece.units:
                units[move.number] = tangents
            else:
                sums[:, own] += tangents
        factors = [piece.units[number] for number in units]
        errors = kernels.bend(factors, list(units.values()), sums, piece.curvature, 1 / self._batch.total)
        units = dict(zip(units, errors, strict=True))
        for block in into:
            found = units.get(block.number)
            kernels.add_gradient(
                piece.inputs[block.number], sums[:, own] if found is None else found, block.weights, block.biases
            )

    def _push(self, group: Sequence[Factors], moves: Sequence[LayerView]) -> torch.Tensor:
        """What the blocks ``moves`` add to J v on the instances of a group, (b, C)."""
        network, first = self._network, group[0].rows.start if group else 0
        count = group[-1].rows.stop - first if group else 0
        sums = self._layers[0].weights.new_zeros(count, network.width)
        for piece in group:
            part = sums[piece.rows.start - first : piece.rows.stop - first]
            for move in moves:
                tangents = network.kernels.affine(piece.inputs[move.number], move.weights, move.biases)
                if move.number in piece.units:
                    network.kernels.add_outputs(piece.units[move.number], tangents, part)
                else:
                    part[:, network.outputs.slice] += tangents
        return sums

    def _pull(self, group: Sequence[Factors], parts: Sequence[torch.Tensor], into: Sequence[LayerView]) -> None:
        """Add J^T u to the blocks ``into``, with one part (b, C) of u for each piece."""
        network = self._network
        for piece, outputs in zip(group, parts, strict=True):
            for block in into:
                if block.number in piece.units:
                    errors = network.kernels.units(piece.units[block.number], outputs)
                else:
                    errors = outputs[:, network.outputs.slice]
                network.kernels.add_gradient(piece.inputs[block.number], errors, block.weights, block.biases)

    def _bent(self, group: Sequence[Factors], tangents: torch.Tensor) -> list[torch.Tensor]:
        """(1/B) B t of every piece, for tangents (b, C) of the group, which are used up."""
        tangents.div_(self._batch.total)
        parts = tangents.split([piece.rows.stop - piece.rows.start for piece in group]) if group else ()
        return [whole_hessian_product(piece.curvature, part) for piece, part in zip(group, parts, strict=True)]

    def _summed(self, outputs: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, in place. *Collective*."""
        if self._objective.comm.size > 1 and outputs.numel():
            self._objective.comm.allreduce(outputs, label="product")
        return outputs

    def _new_vector(self) -> Vector:
        return self._layers[0].weights.new_zeros(self._objective.size)


def bytes_each(layout: NetworkLayout, itemsize: int) -> int:
    """Memory that the factors of one instance take on the rank where they take most."""
    outputs = layout.sizes[-1]

    def numbers(rank: int) -> int:
        held = layout.blocks(rank)
        units = sum(block.outputs.count for block in held if block.number < layout.layers)
        return sum(block.inputs.count for block in held) + outputs * (units + 1)

    return itemsize * max(map(numbers, range(layout.ranks)))
