"""Trust-region steps of first order in the diagonal metric of Adam, for the local and the global trials of APTS.

    s = -radius d / |d|,   d = g / (sqrt(v) + epsilon)

v is the bias-corrected running mean of squared gradients (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1).
Shapes: n parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hpcopt.objective.protocol import Objective, Vector
from hpcopt.solvers.solver import State
from hpcopt.solvers.trust_region import Trial, TrustRegion


@dataclass(frozen=True, kw_only=True)
class AdamTrustRegion(TrustRegion):
    """First-order steps in the metric of Adam, always as long as the radius."""

    model: str = "first_order"
    """No curvature pairs."""
    beta: float = 0.99
    """Decay of the squared gradients; shorter than Adam's 0.999, since there are only a few evaluations a batch."""
    epsilon: float = 1e-8
    """Added to the root."""

    def start(self, parameters: Vector) -> State:
        """As the trust-region method, and the second moment (n,)."""
        return super().start(parameters) | {"second_moment": torch.zeros_like(parameters), "moments": 0}

    def _propose(self, objective: Objective, state: State) -> Trial:
        gradient: Vector = state["gradient"]  # type: ignore[assignment]
        moment: Vector = state["second_moment"]  # type: ignore[assignment]
        state["moments"] = int(state["moments"]) + 1
        moment.mul_(self.beta).addcmul_(gradient, gradient, value=1 - self.beta)
        root = (moment / (1 - self.beta ** int(state["moments"]))).sqrt_().add_(self.epsilon)
        direction = gradient / root
        square, slope = objective.agree(objective.dot(direction, direction), objective.dot(direction, gradient))
        radius = float(state["radius"])
        part = radius / math.sqrt(square) if square > 0 else 0.0
        return Trial(direction.mul_(-part), radius, slope * part, 0, None)
