"""The options of slimTrain; see ``hpcopt.solvers.slimtrain``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hpcopt.solvers.checks import (
    ABOVE_0,
    Needs,
    check_choice,
    check_count,
    check_effects,
    check_flag,
    check_number,
    fail,
)
from hpcopt.solvers.feature_window import FORMS
from hpcopt.solvers.schedules import ScheduledRate

THETA_SOLVERS = ("adam", "sgd", "lars")
"""Values of ``theta_solver``: methods that follow one gradient, which get those options whose names are their own."""

BOUNDS = ("lambda_min", "lambda_max", "candidates")


@dataclass(frozen=True, kw_only=True)
class SlimTrainOptions(ScheduledRate):
    """What the last layer is solved by, what moves all other variables, and what is delivered."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            "memory": 10,
            "learning_rate": 1e-3,
            "lambda_start": 1e-10,
            "lambda_min": 1e-7,
            "lambda_max": 1e3,
            "candidates": 60,
            "schedule": "constant",
            "deliver": "iterate",
        }
    }

    NEEDS: ClassVar[Needs] = {
        **ScheduledRate.NEEDS,
        **{name: ({"selection": ("gcv", "discrepancy"), "deliver": ("refit",)},) for name in BOUNDS},
        "negative": ({"selection": ("gcv", "discrepancy")},),
        **{name: ({"selection": ("discrepancy",)},) for name in ("noise", "noise_factor")},
        **{name: ({"theta_solver": ("adam",)},) for name in ("betas", "epsilon")},
        "momentum": ({"theta_solver": ("sgd", "lars")},),
        "nesterov": ({"theta_solver": ("sgd",)}, {"momentum": ABOVE_0}),
        "trust": ({"theta_solver": ("lars",)},),
        **{name: ({"deliver": ("refit",)},) for name in ("average", "rate_growth", "rate_tolerance")},
    }

    memory: int = 0
    """r: batches before the present one whose predictions are to stay. Without a refit, (r + 1) times the batch should
    not be below m, the inputs of the last layer."""
    selection: str = "gcv"
    """How lambda is chosen in each step: "gcv" (generalised cross-validation on the batch), "discrepancy" (the residual
    that ``noise`` makes) or "fixed" (``lambda_start``)."""
    lambda_start: float = 1e-10
    """Lambda before the first step; with "fixed", lambda of every step."""
    lambda_min: float = 1e-7
    """Lambda, the sum of all lambda, is lifted to this."""
    lambda_max: float = 1e3
    """Largest lambda of a step."""
    candidates: int = 60
    """Values of lambda that are tried in a step."""
    negative: bool = True
    """Whether lambda may be negative, so that Lambda can fall; each step then changes Lambda by half of it at most.
    Otherwise candidates lie between ``lambda_min`` and ``lambda_max``."""
    regularize_bias: bool = True
    """Whether Lambda also holds the bias of the last layer, as in the paper."""
    noise: float = 1e-2
    """discrepancy: variance of the noise in a target."""
    noise_factor: float = 2.0
    """discrepancy: the residual aimed at, in units of what the noise makes."""
    form: str = "auto"
    """How ranks make a batch's features known to each other: "gram" (a sum of Gram matrices), "tsqr" (triangles, for
    features that are nearly dependent), "gather" (all rows), or "auto", what is least of these and accurate."""
    theta_solver: str = "adam"
    """The method of all other variables: "adam", "sgd" or "lars"."""
    learning_rate: float = 1e-3
    """Its rate after the warm-up; lars moves a layer by ``trust`` times this."""
    schedule: str = "auto"
    """How it falls: in a line to nothing at the end of a run whose length is known, or another one of
    ``hpcopt.solvers.schedules``."""
    betas: tuple[float, float] = (0.9, 0.999)
    """adam: decay of the first and second moment."""
    epsilon: float = 1e-8
    """adam: added to the root of the second moment."""
    momentum: float | None = None
    """sgd, lars: share of the last update that is kept. Default: 0, lars 0.9."""
    nesterov: bool = False
    """sgd: look ahead by the momentum."""
    trust: float = 0.001
    """lars: relative change of a layer at rate 1."""
    deliver: str = "refit"
    """What is evaluated and delivered on mini-batches: "refit", a running mean, with W solved on all samples at the end
    of each epoch, its lambda by cross-validation; or "iterate", all as it is."""
    average: float = 0.1
    """refit: the running mean is over about this part of all iterates so far, the latest; 0: the iterate."""
    rate_growth: float = 1.5
    """refit: what the rate is multiplied by at the end of an epoch where the loss on all samples has not risen; it is
    halved where it has. 1: the rate is that of the schedule."""
    rate_tolerance: float = 0.1
    """refit: the loss has risen when it is above the least so far by more than this part of it; or at all for the
    second epoch in a row and does not fall, and where it falls then, the rate stays."""

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            UsageError: an option breaks its rule.
        """
        super().__post_init__()
        check_count(self, "memory", 0)
        check_choice(self, "selection", ("gcv", "discrepancy", "fixed"))
        for name in ("lambda_start", "lambda_min", "lambda_max", "noise_factor"):
            check_number(self, name, 0.0, open_low=True)
        if self.lambda_max <= self.lambda_min:
            fail(self, "lambda_max", f"must be above lambda_min = {self.lambda_min:g}")
        check_count(self, "candidates", 2)
        check_flag(self, "negative")
        check_flag(self, "regularize_bias")
        check_number(self, "noise", 0.0)
        check_choice(self, "form", FORMS)
        check_choice(self, "theta_solver", THETA_SOLVERS)
        check_choice(self, "deliver", ("refit", "iterate"))
        check_number(self, "average", 0.0, 1.0)
        check_number(self, "rate_growth", 1.0)
        check_number(self, "rate_tolerance", 0.0)
        object.__setattr__(self, "betas", tuple(self.betas) if isinstance(self.betas, list) else self.betas)
        check_effects(self)
