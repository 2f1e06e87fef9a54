"""The options of conjugate directions with a learning rate or a line search; see ``hpcopt.solvers.nlcg``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from hpcopt.linalg.conjugacy import RULES
from hpcopt.solvers.checks import Needs, check_choice, check_count, check_flag, check_number
from hpcopt.solvers.conjugate.step_control import MODES
from hpcopt.solvers.schedules import ScheduledRate

PAPER: dict[str, Any] = {
    "step_rule": "control",
    "preconditioner": "released_diagonal_bfgs",
    "beta": "fr",
    "beta_max": 1.0,
    "safeguards": False,
    "learning_rate": 0.1,
    "warmup_epochs": 25.0,
    "warmup": "sqrt",
    "warmup_start": 0.1,
    "schedule": "step",
    "decay_epochs": (102.0, 153.0),
    "control": "step",
    "control_tolerance": 1.0,
    "weight_average": 0.9999,
}
"""The algorithm and recipe of the code released with arXiv 1812.02886, for runs of at most 200 epochs."""


CONTROLLED = {"step_rule": ("control",)}
SEARCHED = {"step_rule": ("strong_wolfe", "hager_zhang")}
CONJUGATE = {"step_rule": (*CONTROLLED["step_rule"], *SEARCHED["step_rule"])}


@dataclass(frozen=True, kw_only=True)
class ConjugateOptions(ScheduledRate):
    """Options that the step rules "control", "strong_wolfe" and "hager_zhang" read."""

    NEEDS: ClassVar[Needs] = {
        **{each.name: (CONTROLLED, *ScheduledRate.NEEDS.get(each.name, ())) for each in fields(ScheduledRate)},
        **{name: (CONJUGATE,) for name in ("beta", "beta_max", "safeguards")},
        **{name: (CONTROLLED,) for name in ("control", "layer_trust", "weight_average")},
        "control_tolerance": (CONTROLLED, {"control": ("step", "online")}),
        "evaluations": (SEARCHED,),
        "horizon_epochs": (),
    }

    beta: str = "pr"
    """Part of the previous direction in the new one: "fr", "pr", "hs", "dy" or "hz"."""
    beta_max: float | None = None
    """Most of it. Default: 1 with "control", else no bound."""
    safeguards: bool = True
    """Whether the previous direction is dropped where the new one would be no descent, after a number that is not
    finite, after a part of a step was taken back, and where the rate drops."""
    control: str = "step"
    """"control": what the step length does when the loss rises: "step" (the smoothed loss over five steps), "online"
    (every loss against the smoothed one) or "none"."""
    control_tolerance: float = 1.0
    """"control": tau, by how many times one per cent the loss may rise."""
    layer_trust: float = 0.0
    """"control": the gradient of every layer is scaled by this times |w| / |g|, as in LARS; 0: it is not."""
    weight_average: float = 0.0
    """"control": the point that is evaluated and delivered is an exponential average of w that keeps this part in every
    step (less in the first ones); 0: w itself."""
    evaluations: int = 20
    """Most gradients in one line search; 1 or 2 are usual."""

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            UsageError: an option breaks its rule.
        """
        super().__post_init__()
        check_choice(self, "beta", tuple(RULES))
        if self.beta_max is not None:
            check_number(self, "beta_max", 0.0)
        check_flag(self, "safeguards")
        check_choice(self, "control", MODES)
        check_number(self, "control_tolerance", 0.0, open_low=True)
        check_number(self, "layer_trust", 0.0)
        check_number(self, "weight_average", 0.0, 1.0, open_high=True)
        check_count(self, "evaluations")
