"""A learning rate that follows the loss from epoch to epoch: it grows while the loss does not rise, else it halves.

Vogl, Mangis, Rigler, Zink and Alkon 1988 (Biological Cybernetics 59, 257-263) do so step by step. Here the loss is that
of all samples at the end of an epoch, so that one that goes too far is taken back: training goes on from the best end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

from hpcopt.objective.protocol import Vector
from hpcopt.solvers.solver import State

CUT = 0.5
"""What the rate is multiplied by where the loss has risen."""
TOO_FAR = 2.0
"""An epoch is taken back when the loss is more than this times the least so far, or when it has risen and was above the
least before: without that the rate could be halved until nothing moves, at a point that is not the best one."""
MOST = 100.0
"""The rate grows to this times that of the schedule: where nothing moves any more, the loss stays, too."""
VELOCITIES = ("first_moment", "velocity")
"""Entries of the state that would go on in the direction that was taken back."""


@dataclass(frozen=True)
class EpochRate:
    """The rule, whose numbers are in a solver's state.

    Attributes:
        growth: what the rate is multiplied by where the loss has not risen; 1: the rate stays.
        tolerance: a loss has risen when it is above the least so far by more than this part of it, or by less for the
            second epoch in a row: at a rate that is too large the loss stays a little above what it could be. Where it
            falls again in that epoch, the rate stays.
    """

    growth: float
    tolerance: float

    def init(self, parameters: Vector) -> State:
        """Entries of the state at w (n,)."""
        losses = {"least_loss": math.inf, "last_loss": math.inf}
        return {"rate_factor": 1.0, "above_least": 0, **losses, "least_parameters": parameters.clone()}

    def update(self, state: State, loss: float) -> None:
        """Take in the loss at the point that is delivered, the same number on all ranks."""
        least, point, kept = (
            state["least_loss"],
            *(cast(Vector, state[key]) for key in ("average", "least_parameters")),
        )
        risen = not loss <= (1 + self.tolerance) * least
        stuck = risen and bool(state["above_least"])
        if math.isfinite(least) and self.growth > 1.0:
            factor = CUT if risen else self._factor(state, loss)
            state["rate_factor"] = min(float(state["rate_factor"]) * factor, MOST)
            state |= {"above_least": int(not loss <= least), "last_loss": loss}
        if loss < least:
            state["least_loss"] = loss
            kept.copy_(point)
        elif stuck or not loss <= TOO_FAR * least:
            state["above_least"] = 0
            cast(Vector, state["parameters"]).copy_(point.copy_(kept))
            for name in VELOCITIES:
                if name in state:
                    cast(Vector, state[name]).zero_()

    def _factor(self, state: State, loss: float) -> float:
        """What the rate is multiplied by after a loss that is not far above the least."""
        if loss > float(state["least_loss"]) and bool(state["above_least"]):
            return 1.0 if loss < float(state["last_loss"]) else CUT
        return self.growth
