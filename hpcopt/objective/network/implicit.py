"""Products with the Jacobian of a cut network by a sweep forward and one backward; J is not represented.

Letters and shapes are those of ``ExplicitLinearization``, which has the same answers. Nothing but activations is made
first, but every product has messages, in numbers, on a grid: forward b v_m a layer, backward b u_m a layer but the
first, and softmax b where outputs are split. A rank's own block of the matrix cannot be had without the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, NoReturn

import torch

from hpcopt.errors import UsageError
from hpcopt.objective import vectors
from hpcopt.objective.network.memory import Streamed
from hpcopt.objective.network.passes import Kept
from hpcopt.objective.protocol import Batch, Vector

if TYPE_CHECKING:
    from hpcopt.objective.network.explicit import Factors
    from hpcopt.objective.network.objective import NetworkObjective


class Activations(NamedTuple):
    """What the sweeps need of some instances of the batch.

    Attributes:
        rows: which instances.
        inputs: what each of the rank's layers was given, z (b, u_m), by its number m.
        curvature: probabilities (b, v_L) of this rank's outputs; None where the Hessian of the loss is the identity.
    """

    rows: slice
    inputs: Kept
    curvature: torch.Tensor | None


class ImplicitLinearization:
    """J, J^T and Gauss-Newton products at one point by the R-operator (Pearlmutter 1994). *Collective*.

    Args:
        objective: the network, the loss and the samples.
        w: this rank's numbers of the point (n,), which are copied.
        batch: the instances, the same on all ranks.
        limit: most bytes of activations that a rank keeps. Those beyond are computed anew in every product.
        shared: factors made at the same point on the same batch, whose activations serve here too.
    """

    def __init__(
        self,
        objective: NetworkObjective,
        w: Vector,
        batch: Batch,
        limit: int,
        shared: Streamed[Factors] | None = None,
    ) -> None:
        self._objective, self._network, self._batch = objective, objective.network, batch
        self._layers = self._network.views(w.detach().clone())
        if shared is not None:
            self._pieces = shared.seen(self._view, self._activations)
            return
        layout = objective.partition
        numbers = max(
            sum(held.inputs.count for held in layout.blocks(rank)) + layout.outputs(rank).count
            for rank in range(layout.ranks)
        )
        self._pieces = Streamed(
            batch.count, objective.micro_batch, numbers * w.element_size(), limit, self._activations
        )

    def jvp(self, v: Vector) -> torch.Tensor:
        """J v (b, C), the same on all ranks. *Collective*."""
        tangents = [self._push(piece, v) for group in self._pieces.groups() for piece in group]
        own = torch.cat(tangents) if tangents else self._objective.targets[:0]
        return self._network.gather_outputs(own)

    def vjp(self, u: torch.Tensor) -> Vector:
        """This rank's numbers (n,) of J^T u, for the same u (b, C) on all ranks. *Collective*."""
        total = self._layers[0].weights.new_zeros(self._objective.size)
        for group in self._pieces.groups():
            for piece in group:
                self._pull(piece, u[piece.rows, self._network.outputs.slice], total)
        return total

    def gauss_newton(self, v: Vector) -> Vector:
        """This rank's numbers of (1/B) J^T B J v + weight_decay v, a new vector. *Collective*."""
        total = self._layers[0].weights.new_zeros(self._objective.size)
        for group in self._pieces.groups():
            for piece in group:
                tangents = self._push(piece, v).div_(self._batch.total)
                self._pull(piece, self._objective.split_loss.hessian_product(piece.curvature, tangents), total)
        self._objective.count_products(self._batch)
        return total.add_(v, alpha=self._objective.weight_decay)

    def curvatures(self, directions: torch.Tensor) -> torch.Tensor:
        """D G D^T for this rank's columns D (k, n) of stacked directions: (k, k), float64, the same on all ranks.

        *Collective*: a sweep forward for each direction, and one reduction of scalars.
        """
        objective, count = self._objective, len(directions)
        total = objective.weight_decay * vectors.inner(directions, directions)
        for group in self._pieces.groups():
            for piece in group:
                pushed = [self._push(piece, direction) for direction in directions]
                bent = [objective.split_loss.hessian_product(piece.curvature, tangents) for tangents in pushed]
                if self._network.is_first:
                    left, right = (torch.stack(parts).view(count, -1) for parts in (pushed, bent))
                    total += vectors.inner(left, right) / self._batch.total
        objective.count_products(self._batch, count / 2)
        sums = objective.comm.reduce_scalars(total.flatten().tolist(), label="curvatures")
        return torch.tensor(sums, dtype=torch.float64).view(count, count)

    @property
    def block(self) -> NoReturn:
        """Not offered: a product with a rank's block runs through the layers of the others."""
        raise UsageError(
            'direction = "block" needs the factors of the Jacobian, which jacobian = "implicit" does not make. Use '
            'parallel.jacobian = "explicit", or direction = "full".',
            collective=True,
        )

    def _activations(self, rows: slice) -> Activations:
        """A forward sweep on some instances of the batch. *Collective*."""
        kept: Kept = {}
        outputs = self._network.forward(self._layers, self._objective.rows(self._batch, rows)[0], kept)
        self._objective.work.values += (rows.stop - rows.start) / self._objective.samples
        return Activations(rows, kept, self._objective.split_loss.curvature(outputs))

    def _view(self, piece: Factors) -> Activations:
        """What is kept with factors."""
        whole, own = piece.curvature, self._network.outputs.slice
        return Activations(piece.rows, piece.inputs, None if whole is None else whole[:, own])

    def _push(self, piece: Activations, v: Vector) -> torch.Tensor:
        """This rank's outputs (b, v_L) of J v. *Collective*."""
        return self._network.tangents(self._layers, piece.inputs, self._network.views(v))

    def _pull(self, piece: Activations, errors: torch.Tensor, total: Vector) -> None:
        """Add this rank's numbers of J^T u, for this rank's outputs (b, v_L) of u. *Collective*."""
        self._network.backward(self._layers, piece.inputs, errors, self._network.views(total))
