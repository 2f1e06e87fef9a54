"""A line search by halving the step until the loss falls enough (Armijo 1966).

    f(w + alpha d) <= f(w) + eta alpha g^T d

It works on numbers alone: where they are the same on all ranks, all ranks take the same branches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

SHRINK = 0.5
"""Each trial is so much shorter than the last (Wang et al. 2018, arXiv 1802.00130)."""


@dataclass(frozen=True)
class Backtracking:
    """The end of a search.

    Attributes:
        step: alpha; 0 when no trial fell enough.
        value: f there; that of the start when no trial fell enough.
        evaluations: trials made.
        finite: False when a trial was not finite; such a trial counts as too long.
    """

    step: float
    value: float
    evaluations: int
    finite: bool


def backtrack(
    evaluate: Callable[[float], float], start: float, slope: float, armijo: float, trials: int
) -> Backtracking:
    """Try the steps 1, 1/2, 1/4, ...

    Args:
        evaluate: f(w + alpha d) as a function of alpha.
        start: f(w).
        slope: g^T d, below 0.
        armijo: eta.
        trials: most evaluations, at least 1.
    """
    step, finite = 1.0, True
    for number in range(1, trials + 1):
        value = evaluate(step)
        finite = finite and math.isfinite(value)
        if math.isfinite(value) and value <= start + armijo * step * slope and value < start:
            return Backtracking(step, value, number, finite)
        step *= SHRINK
    return Backtracking(0.0, start, trials, finite)
