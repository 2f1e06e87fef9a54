"""Levenberg-Marquardt damping of the Gauss-Newton matrix: lambda follows how well the model foretold the loss."""

from __future__ import annotations

DAMPING_MIN, DAMPING_MAX = 1e-8, 1e8
"""lambda stays within these."""

GOOD, BAD = 0.75, 0.25
"""Above the first ratio of actual to predicted decrease lambda falls, below the second it grows (Wang et al. 2018)."""


def clipped(damping: float) -> float:
    """Lambda within its bounds."""
    return min(max(damping, DAMPING_MIN), DAMPING_MAX)


def after_step(
    damping: float,
    gained: float,
    promised: float,
    increase: float,
    decrease: float,
    *,
    bad: float = BAD,
    good: float = GOOD,
) -> float:
    """The next lambda after a step that gained so much of what the model promised, which is above 0."""
    if gained > good * promised:
        damping *= decrease
    elif not gained >= bad * promised:
        damping *= increase
    return clipped(damping)


def after_failure(damping: float, increase: float) -> float:
    """The next lambda when no step was found."""
    return clipped(damping * increase**2)
