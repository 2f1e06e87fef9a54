"""weight_decay / 2 |v|^2 of those variables v that decay: all of them, or all but those of normalisations.

Shapes: n variables, k directions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from hpcopt.objective import vectors
from hpcopt.objective.parameters import FlatParameters
from hpcopt.objective.protocol import Vector

NORMALISATIONS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
"""Torch's modules whose scale and shift do not decay where that is wished."""


class WeightDecay:
    """What it adds to an objective, to its gradient and to its curvature. No communication.

    Args:
        coefficient: weight_decay.
        decays: (n,), 1 for a variable that decays and 0 for one that does not; None where all do.
    """

    def __init__(self, coefficient: float, decays: Vector | None = None) -> None:
        self.coefficient, self._decays = coefficient, decays

    def part(self, take: Callable[[Vector], Vector]) -> WeightDecay:
        """The same of some of the variables, which ``take`` takes from a vector (n,)."""
        return WeightDecay(self.coefficient, None if self._decays is None else take(self._decays))

    def value(self, w: Vector) -> float:
        """weight_decay / 2 |v|^2 at w (n,)."""
        return 0.5 * self.coefficient * vectors.dot(self._of(w), w) if self.coefficient else 0.0

    def add_gradient(self, total: Vector, w: Vector) -> Vector:
        """Add the gradient at w (n,), which is the product of the Hessian with w, to ``total`` (n,) in place."""
        return total.add_(self._of(w), alpha=self.coefficient) if self.coefficient else total

    def curvatures(self, directions: torch.Tensor) -> torch.Tensor:
        """D H D^T for stacked directions D (k, n) and the Hessian H: (k, k), float64, on the CPU."""
        return self.coefficient * vectors.inner(self._of(directions), directions)

    def _of(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors (..., n), 0 where variables do not decay."""
        return vectors if self._decays is None else vectors * self._decays


def without_normalisations(module: nn.Module, parameters: FlatParameters) -> Vector:
    """(n,): 0 for scale and shift of each of torch's normalisations in the module, 1 for all other variables."""
    norms = {
        id(tensor)
        for each in module.modules()
        if isinstance(each, NORMALISATIONS)
        for tensor in each.parameters(recurse=False)
    }
    parts = [torch.full((tensor.numel(),), float(id(tensor) not in norms)) for tensor in parameters.tensors]
    return torch.cat(parts).to(dtype=parameters.dtype, device=parameters.device)
