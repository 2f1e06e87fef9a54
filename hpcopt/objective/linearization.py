"""Products with the Jacobian of the outputs and with the Gauss-Newton matrix, by forward and backward mode.

Shapes: n parameters, b samples of this rank in the batch, B of all ranks, C outputs; J is (b*C, n) on a rank.
The Gauss-Newton matrix is (1/B) sum_i J_i^T H_i J_i + weight_decay I (Schraudolph 2002, doi:10.1162/08997660260028683).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch.func import functional_call, jvp, vjp

from hpcopt.objective.protocol import Batch, Vector

if TYPE_CHECKING:
    from hpcopt.objective.data_parallel import DataParallelObjective


class ImplicitLinearization:
    """J, J^T and Gauss-Newton products of any torch model at one point, on one batch. J is never formed."""

    def __init__(self, objective: DataParallelObjective, w: Vector, batch: Batch) -> None:
        self._objective, self._batch = objective, batch
        self._w = w.detach().clone()
        self._pieces = list(objective.shard.chunks(batch))

    def jvp(self, v: Vector) -> torch.Tensor:
        """J v for this rank's samples, shape (b, C)."""
        tangents = [self._push(piece, v) for piece in range(len(self._pieces))]
        return torch.cat(tangents) if tangents else self._w.new_zeros(0, self._objective.outputs)

    def vjp(self, u: torch.Tensor) -> Vector:
        """J^T u summed over the samples of all ranks, for u of shape (b, C). *Collective*."""
        total = torch.zeros_like(self._w)
        for piece, part in enumerate(self._split(u)):
            total += self._linear(piece)[1](part)[0]
        return self._objective.reduce(total)

    def gauss_newton(self, v: Vector) -> Vector:
        """(1/B) J^T H J v + weight_decay v. *Collective*, one reduction."""
        loss, total = self._objective.shard.loss, torch.zeros_like(self._w)
        for piece, (_, targets) in enumerate(self._pieces):
            tangents = self._push(piece, v)
            outputs, pull_back = self._linear(piece)
            total += pull_back(loss.hessian_product(outputs, targets, tangents))[0]
        self._objective.count_products(self._batch)
        product = self._objective.reduce(total.div_(max(self._batch.total, 1)))
        return product.add_(v, alpha=self._objective.weight_decay)

    def _push(self, piece: int, v: Vector) -> torch.Tensor:
        """J v of one piece of the batch."""
        with self._frozen(piece):
            tangents: torch.Tensor = jvp(self._outputs(self._pieces[piece][0]), (self._w,), (v,))[1]
        return tangents

    def _linear(self, piece: int) -> tuple[torch.Tensor, Callable[[torch.Tensor], tuple[Vector]]]:
        """Outputs of one piece and the map u -> J^T u."""
        with self._frozen(piece):
            outputs, pull_back = vjp(self._outputs(self._pieces[piece][0]), self._w)[:2]
        return outputs, pull_back

    def _outputs(self, inputs: torch.Tensor) -> Callable[[Vector], torch.Tensor]:
        """The outputs on ``inputs`` as a function of the flat vector."""
        shard = self._objective.shard
        names, views = shard.parameters.names, shard.parameters.views

        def outputs(w: Vector) -> torch.Tensor:
            result: torch.Tensor = functional_call(
                shard.module, dict(zip(names, views(w), strict=True)), (inputs,), tie_weights=True
            )
            return result

        return outputs

    def _frozen(self, piece: int) -> AbstractContextManager[None]:
        shard = self._objective.shard
        shard.module.train()
        return shard.stochastic.frozen(self._batch.key, piece, self._w.device, may_update=False)

    def _split(self, u: torch.Tensor) -> list[torch.Tensor]:
        return list(u.split([len(inputs) for inputs, _ in self._pieces])) if self._pieces else []
