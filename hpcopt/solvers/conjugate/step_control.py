"""A step length that follows the loss: the feedback of the code released with arXiv 1812.02886 (apple/ml-ncg).

The learning rate of the schedule is multiplied by a base that grows slowly while the loss falls and is cut where it
rises; a cut also takes back a share of the last step. Decisions are taken from one reduced loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from hpcopt.solvers.solver import State

MODES = ("none", "step", "online")

TABLE = (
    (0.15, 0.5, 0.9),
    (0.125, 0.7, 0.7),
    (0.10, 0.8, 0.5),
    (0.075, 0.9, 0.3),
    (0.05, 0.95, 0.2),
    (0.025, 0.975, 0.1),
    (0.01, 1.0, 0.1),
)
"""Where the loss over the reference is above 1 + the first number times tau: factor of the base, and the share of the
last step that is taken back."""

GROWTH = {"step": 1.05, "online": 1.02}
"""Factor of the base where the loss is below 1 + 0.01 tau times the reference."""

BASE_MIN, BASE_MAX = 1e-4, 1.0
"""The base stays within these."""

PERIOD = 5
"""Steps between two looks at the loss, in the mode "step"."""

KEPT = 0.7
"""Share of the smoothed loss that a new one leaves of it."""


class Feedback(NamedTuple):
    """What one look at the loss says.

    Attributes:
        factor: of the base.
        undo: share of the last step that is taken back.
    """

    factor: float
    undo: float


def feedback(ratio: float, tolerance: float, growth: float) -> Feedback:
    """The line of the table for a loss over the reference. A ratio that is no number takes the first line.

    Args:
        ratio: new loss over reference.
        tolerance: tau.
        growth: factor where the loss does not rise.
    """
    if ratio < 1 + 0.01 * tolerance:
        return Feedback(growth, 0.0)
    for above, factor, undo in TABLE:
        if not ratio <= 1 + above * tolerance:
            return Feedback(factor, undo)
    return Feedback(1.0, 0.0)


@dataclass(frozen=True)
class StepControl:
    """The base of the step length, in a solver's state.

    Attributes:
        mode: "none": the base stays 1; "step": the smoothed loss is compared with itself ``PERIOD`` steps earlier;
            "online": every loss is compared with the smoothed one, of which it is a part.
        tolerance: tau.
    """

    mode: str
    tolerance: float

    def init(self) -> State:
        """Entries of the state."""
        return {"base": BASE_MAX, "smoothed_loss": 0.0, "reference_loss": 0.0}

    def update(self, state: State, loss: float, step: int) -> float:
        """Take in the loss at the start of a step, the ``step``-th from 0; returns the share of the last to take back.

        The state's base is the one for this step from now on.
        """
        if step == 0:
            state["smoothed_loss"] = state["reference_loss"] = loss
            return 0.0
        smoothed = state["smoothed_loss"] = KEPT * float(state["smoothed_loss"]) + (1 - KEPT) * loss
        if self.mode == "none" or (self.mode == "step" and step % PERIOD):
            return 0.0
        reference = float(state["reference_loss"])
        new, old = (smoothed, reference) if self.mode == "step" else (loss, smoothed)
        state["reference_loss"] = smoothed
        found = feedback(new / old if old else 1.0, self.tolerance, GROWTH[self.mode])
        state["base"] = min(max(found.factor * float(state["base"]), BASE_MIN), BASE_MAX)
        return found.undo
