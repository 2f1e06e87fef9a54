"""Learning-rate schedules as a pure function of the epochs done, so that a resumed run needs no counter for them.

The rate is piecewise: a warm-up, linear (Goyal et al. 2017, arXiv 1706.02677, section 2.2) or slow at first and steep
at its end (the code released with arXiv 1812.02886), then constant, cosine (Loshchilov and Hutter 2017, arXiv
1608.03983, eq. 5 without restarts), a straight line or a parabola to zero (the polynomial policy of powers 1 and 2), or
steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from hpcopt.errors import UsageError
from hpcopt.solvers.checks import ABOVE_0, Needs, check_choice, check_number, fail

SCHEDULES = ("constant", "cosine", "linear", "quadratic", "step", "auto")

WARMUPS = ("linear", "sqrt")

WARMUP_START = 0.1
"""The warm-up begins at this fraction of the learning rate: from 0 the first full-batch step would be no step."""

STEP_MILESTONES = (0.5, 0.75)
"""Drops of "step" as fractions of the run (He et al. 2016, arXiv 1512.03385, section 4.2: at 32k and 48k of 64k)."""


@dataclass(frozen=True, kw_only=True)
class ScheduledRate:
    """The options of a learning rate that changes over the epochs; base of the first-order methods."""

    NEEDS: ClassVar[Needs] = {
        "warmup": ({"warmup_epochs": ABOVE_0},),
        "warmup_start": ({"warmup_epochs": ABOVE_0},),
        "decay_epochs": ({"schedule": ("cosine", "linear", "quadratic", "step", "auto")},),
        "decay_factor": ({"schedule": ("step",)},),
    }

    learning_rate: float = 0.1
    """The rate after the warm-up."""
    schedule: str = "constant"
    """How it changes: "constant", "cosine", "linear", "quadratic" or "step" (all at once at some epochs), or "auto":
    "linear" where the length of the run is known, else "constant"."""
    warmup_epochs: float = 0.0
    """Epochs in which the rate grows to ``learning_rate``."""
    warmup: str = "linear"
    """How it grows: "linear", or "sqrt": learning_rate less what is missing at the start times the root of what is left
    of the warm-up."""
    warmup_start: float | None = None
    """Rate at which the warm-up begins. Default: a tenth of ``learning_rate``."""
    decay_epochs: float | tuple[float, ...] | None = None
    """step: the epochs at which it drops, or one number for a drop every so many epochs (default: at half and three
    quarters of the run).
    cosine, linear, quadratic: the epoch at which the rate is 0 (default: the end of the run)."""
    decay_factor: float = 0.1
    """What the rate is multiplied by at each drop of "step"."""
    horizon_epochs: float | None = None
    """Length of the run in epochs; filled in by the run, needed where ``decay_epochs`` is not given."""

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            UsageError: an option breaks its rule.
        """
        check_number(self, "learning_rate", 0.0, open_low=True)
        check_choice(self, "schedule", SCHEDULES)
        check_number(self, "warmup_epochs", 0.0)
        check_choice(self, "warmup", WARMUPS)
        if self.warmup_start is not None:
            check_number(self, "warmup_start", 0.0, open_low=True)
        check_number(self, "decay_factor", 0.0, 1.0, open_low=True)
        if self.horizon_epochs is not None:
            check_number(self, "horizon_epochs", 0.0, open_low=True)
        self._check_decay_epochs()

    def _check_decay_epochs(self) -> None:
        if isinstance(self.decay_epochs, (list, tuple)):
            object.__setattr__(self, "decay_epochs", tuple(self.decay_epochs))
            ascending = all(isinstance(epoch, (int, float)) and epoch > 0 for epoch in self.decay_epochs)
            if not ascending or list(self.decay_epochs) != sorted(self.decay_epochs) or not self.decay_epochs:
                fail(self, "decay_epochs", "must be a list of ascending epochs above 0, as in [80, 120]")
            if self.schedule not in ("step", "constant"):
                fail(self, "decay_epochs", f'must be one number for "{self.schedule}": where the rate is 0')
        elif self.decay_epochs is not None:
            check_number(self, "decay_epochs", 0.0, open_low=True)
            if self.schedule not in ("constant", "step") and self.decay_epochs <= self.warmup_epochs:
                fail(self, "decay_epochs", f"must be above warmup_epochs = {self.warmup_epochs:g}")

    def rate(self, position: float) -> float:
        """The learning rate after ``position`` epochs (a fraction within an epoch).

        Raises:
            UsageError: the schedule needs the length of the run and neither it nor ``decay_epochs`` is known.
        """
        if position < self.warmup_epochs:
            return self._warming(1 - position / self.warmup_epochs)
        if self.schedule == "constant" or (self.schedule == "auto" and self._given_end() is None):
            return self.learning_rate
        if self.schedule == "step":
            return self.learning_rate * self.decay_factor ** self._drops(position)
        end = self._end()
        done = 1.0 if end <= self.warmup_epochs else (position - self.warmup_epochs) / (end - self.warmup_epochs)
        left = max(1.0 - done, 0.0)
        if self.schedule == "cosine":
            return self.learning_rate * (1 - math.cos(math.pi * left)) / 2
        return self.learning_rate * (left * left if self.schedule == "quadratic" else left)

    def _warming(self, left: float) -> float:
        """The rate with a part ``left`` of the warm-up still to come; one that starts above the end stays there."""
        start = self.learning_rate * WARMUP_START if self.warmup_start is None else self.warmup_start
        missing = max(self.learning_rate - start, 0.0)
        return self.learning_rate - missing * (math.sqrt(left) if self.warmup == "sqrt" else left)

    def _drops(self, position: float) -> int:
        if isinstance(self.decay_epochs, tuple):
            return sum(position >= epoch for epoch in self.decay_epochs)
        if self.decay_epochs is not None:
            return int(position / self.decay_epochs)
        return sum(position >= fraction * self._end() for fraction in STEP_MILESTONES)

    def _given_end(self) -> float | None:
        return self.decay_epochs if isinstance(self.decay_epochs, (int, float)) else self.horizon_epochs

    def _end(self) -> float:
        end = self._given_end()
        if end is None:
            raise UsageError(
                f'{type(self).__name__}: the schedule "{self.schedule}" has no end: the length of the run in epochs is '
                "not known here. Give decay_epochs."
            )
        return float(end)
