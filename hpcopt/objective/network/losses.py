"""Losses of outputs that are split over groups of ranks, each of which holds some columns for all instances.

Shapes: b instances, C outputs of the network, v of them on this rank. Targets are the same columns of the 0/1 (or real)
values. A sum over instances counts this rank's columns only; sums run in float64. Functions marked *Collective* are so
over the ranks that hold different outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.kernels.torch_kernels import softmax_product


class SplitLoss(Protocol):
    """One term an instance, convex in the outputs."""

    name: str

    def sum(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """This rank's part of the sum over the instances. *Collective*."""
        ...

    def sum_and_errors(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[float, torch.Tensor]:
        """As ``sum``, and the derivative (b, v) with respect to this rank's outputs, a new array. *Collective*."""
        ...

    def curvature(self, outputs: torch.Tensor) -> torch.Tensor | None:
        """What Hessian products need of the outputs: this rank's probabilities (b, v), or nothing. *Collective*."""
        ...

    def hessian_product(self, curvature: torch.Tensor | None, tangents: torch.Tensor) -> torch.Tensor:
        """B_i t_i for tangents (b, v) of this rank's outputs. *Collective*."""
        ...


class SplitSquared:
    """|z - y|^2 / 2; nothing of it needs the other outputs."""

    name = "squared"

    def __init__(self, groups: Communicator) -> None:
        del groups

    def sum(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """Sum over instances and own outputs."""
        return float((outputs - targets).square_().sum(dtype=torch.float64)) / 2

    def sum_and_errors(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[float, torch.Tensor]:
        """The sum, and z - y."""
        errors = outputs - targets
        return float(errors.square().sum(dtype=torch.float64)) / 2, errors

    def curvature(self, outputs: torch.Tensor) -> None:
        """Nothing: the Hessian is the identity."""

    def hessian_product(self, curvature: torch.Tensor | None, tangents: torch.Tensor) -> torch.Tensor:
        """The tangents themselves."""
        return tangents


class SplitCrossEntropy:
    """-sum_c y_c log p_c with p = softmax(z) over all C outputs and targets y that sum to 1.

    Maximum and sum of the exponentials cross the groups of outputs, one number an instance each; with one group nothing
    does.
    """

    name = "cross_entropy"

    def __init__(self, groups: Communicator) -> None:
        self._groups = groups

    def sum(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """Sum over instances and own outputs."""
        return self._sum(*self._shifted(outputs), targets)

    def sum_and_errors(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[float, torch.Tensor]:
        """The sum, and p - y."""
        shifted, total = self._shifted(outputs)
        return self._sum(shifted, total, targets), shifted.exp_().div_(total).sub_(targets)

    def curvature(self, outputs: torch.Tensor) -> torch.Tensor:
        """Probabilities p of this rank's outputs."""
        shifted, total = self._shifted(outputs)
        return shifted.exp_().div_(total)

    def hessian_product(self, curvature: torch.Tensor | None, tangents: torch.Tensor) -> torch.Tensor:
        """(diag(p) - p p^T) t (Schraudolph 2002, doi:10.1162/08997660260028683, table 1)."""
        assert curvature is not None
        weighted = curvature * tangents
        means = _over(self._groups, weighted.sum(dim=1, keepdim=True), "sum")
        return weighted.addcmul_(curvature, means, value=-1)

    def _sum(self, shifted: torch.Tensor, total: torch.Tensor, targets: torch.Tensor) -> float:
        """The terms of own outputs; from differences to the largest score, so exact where a probability is near 1."""
        return float((targets * (total.log() - shifted)).sum(dtype=torch.float64))

    def _shifted(self, outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Differences z - max z (b, v) and the sum of its exponentials over all outputs (b, 1).

        Ranks without outputs are no group of them.
        """
        if outputs.shape[1] == 0:
            return outputs.clone(), outputs.new_ones(len(outputs), 1)
        shifted = outputs - _over(self._groups, outputs.amax(dim=1, keepdim=True), "max")
        return shifted, _over(self._groups, shifted.exp().sum(dim=1, keepdim=True), "sum")


SPLIT_LOSSES: dict[str, Callable[[Communicator], SplitLoss]] = {
    "squared": SplitSquared,
    "cross_entropy": SplitCrossEntropy,
}
"""Name -> the loss for outputs split over the ranks of a communicator."""


def whole_hessian_product(curvature: torch.Tensor | None, tangents: torch.Tensor) -> torch.Tensor:
    """B_i t_i of all C outputs, (..., b, C), with the curvature (b, C) gathered; a new array or the tangents. Local."""
    return tangents if curvature is None else softmax_product(curvature, tangents)


def _over(groups: Communicator, numbers: torch.Tensor, op: str) -> torch.Tensor:
    """Reduce one number an instance over the groups of outputs, in place. *Collective*."""
    if groups.size > 1:
        groups.allreduce(numbers, op, label="softmax")
    return numbers
