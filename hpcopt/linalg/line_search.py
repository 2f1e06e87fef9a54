"""A line search for the strong Wolfe conditions (Nocedal and Wright 2006, algorithms 3.5 and 3.6).

    phi(t) <= phi(0) + c1 t phi'(0)     and     |phi'(t)| <= c2 |phi'(0)|

It works on numbers alone: where they are the same on all ranks, all ranks take the same branches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Payload = TypeVar("Payload")

EDGE = 0.1
"""A trial within a bracket keeps this part of its length from both ends, so that brackets shrink (ibid., page 58)."""

LONGEST = 1e20
"""No trial is longer: a function that falls for ever ends at a number."""


@dataclass(frozen=True)
class Point(Generic[Payload]):
    """phi at one step length; ``payload`` is what the caller wants back with it, such as the gradient."""

    step: float
    value: float
    slope: float
    payload: Payload

    @property
    def finite(self) -> bool:
        """Whether value and slope are finite."""
        return math.isfinite(self.value) and math.isfinite(self.slope)


@dataclass(frozen=True)
class Search(Generic[Payload]):
    """The end of a line search.

    Attributes:
        point: where it ended; None when no trial had sufficient decrease.
        evaluations: trials made.
        finite: False when a trial was not finite; such a trial counts as too long.
    """

    point: Point[Payload] | None
    evaluations: int
    finite: bool


class StrongWolfe(Generic[Payload]):
    """One line search along a direction of descent.

    Args:
        evaluate: phi at a step length.
        start: phi at 0, with a slope below 0.
        armijo: c1.
        curvature: c2, between c1 and 1.
        evaluations: most trials.
    """

    def __init__(
        self,
        evaluate: Callable[[float], Point[Payload]],
        start: Point[Payload],
        armijo: float = 1e-4,
        curvature: float = 0.9,
        evaluations: int = 20,
    ) -> None:
        self._evaluate, self._start = evaluate, start
        self._armijo, self._curvature, self._most = armijo, curvature, evaluations
        self._spent, self._finite = 0, True

    def run(self, first: float) -> Search[Payload]:
        """Search from the trial step ``first`` (algorithm 3.5).

        When the trials are spent the best one with sufficient decrease is the result, if there is one.
        """
        previous, trial = self._start, self._at(first)
        while True:
            if not self._decreases(trial) or (previous.step > 0 and trial.value >= previous.value):
                return self._end(self._zoom(previous, trial))
            if self._flat(trial) or self._spent >= self._most or trial.step >= LONGEST:
                return self._end(trial)
            if trial.slope >= 0:
                return self._end(self._zoom(trial, previous))
            grown = cubic_minimiser(previous, trial)
            step = min(max(grown, 2 * trial.step), 10 * trial.step) if math.isfinite(grown) else 2 * trial.step
            previous, trial = trial, self._at(min(step, LONGEST))

    def _zoom(self, low: Point[Payload], high: Point[Payload]) -> Point[Payload]:
        """Algorithm 3.6: ``low`` has the lowest value so far with sufficient decrease; a good step is in between."""
        while self._spent < self._most:
            trial = self._at(self._between(low, high))
            if not self._decreases(trial) or trial.value >= low.value:
                high = trial
                continue
            if self._flat(trial):
                return trial
            if trial.slope * (high.step - low.step) >= 0:
                high = low
            low = trial
        return low

    def _between(self, low: Point[Payload], high: Point[Payload]) -> float:
        """The cubic's minimiser, kept away from the ends; the middle, or near ``low`` when ``high`` is not finite."""
        if not high.finite:
            return low.step + EDGE * (high.step - low.step)
        left, right = sorted((low.step, high.step))
        step = cubic_minimiser(low, high)
        if not left <= step <= right:
            return 0.5 * (left + right)
        edge = EDGE * (right - left)
        return min(max(step, left + edge), right - edge)

    def _at(self, step: float) -> Point[Payload]:
        self._spent += 1
        point = self._evaluate(step)
        self._finite = self._finite and point.finite
        return point

    def _decreases(self, point: Point[Payload]) -> bool:
        return point.finite and point.value <= self._start.value + self._armijo * point.step * self._start.slope

    def _flat(self, point: Point[Payload]) -> bool:
        return abs(point.slope) <= -self._curvature * self._start.slope

    def _end(self, point: Point[Payload]) -> Search[Payload]:
        useful = point.step > 0 and point.value < self._start.value
        return Search(point if useful else None, self._spent, self._finite)


def cubic_minimiser(a: Point[Payload], b: Point[Payload]) -> float:
    """The minimiser of the cubic through values and slopes at two points (ibid., eq. 3.59); NaN where it has none."""
    if a.step == b.step:
        return math.nan
    d1 = a.slope + b.slope - 3 * (a.value - b.value) / (a.step - b.step)
    square = d1 * d1 - a.slope * b.slope
    if not square >= 0:
        return math.nan
    d2 = math.copysign(math.sqrt(square), b.step - a.step)
    divisor = b.slope - a.slope + 2 * d2
    return b.step - (b.step - a.step) * (b.slope + d2 - d1) / divisor if divisor else math.nan
