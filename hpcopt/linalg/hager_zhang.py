"""The line search of Hager and Zhang, which ends near a minimiser where values differ by their rounding only.

A step t is accepted by the Wolfe conditions or, where phi(t) <= phi(0) + eps_k, by their approximate form:

    phi(t) - phi(0) <= delta t phi'(0)          and  phi'(t) >= sigma phi'(0)                       (Wolfe)
    (2 delta - 1) phi'(0) >= phi'(t) >= sigma phi'(0)                                               (approximate)

The second compares slopes, which are known to eps where values are known to sqrt(eps). After W. W. Hager and H. Zhang
2005, "A new conjugate gradient method with guaranteed descent and an efficient line search", SIAM J. Optim. 16(1), and
2006, "Algorithm 851: CG_DESCENT", ACM TOMS 32(1); names of steps and constants are theirs. It works on numbers alone:
where they are the same on all ranks, all ranks take the same branches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic

from hpcopt.linalg.line_search import Payload, Point, Search

DELTA, SIGMA = 0.1, 0.9
"""Sufficient decrease and curvature."""

EPSILON = 1e-6
"""eps_k = EPSILON |phi(0)|: what a value may lie above phi(0)."""

THETA = 0.5
"""Where a bracket whose upper end is too high is cut (U3)."""

GAMMA = 2 / 3
"""A bracket that shrank less than by this factor in an iteration is halved (L2)."""

RHO = 5.0
"""Growth of a step that does not bracket yet (B3)."""

Pair = tuple[Point[Payload], Point[Payload]]


class Enough(Exception):  # noqa: N818  # not an error: it ends the search from within
    """A trial was accepted, or the trials are spent."""


class HagerZhang(Generic[Payload]):
    """One line search along a direction of descent.

    Args:
        evaluate: phi at a step length.
        start: phi at 0, with a slope below 0.
        evaluations: most trials.
    """

    def __init__(
        self, evaluate: Callable[[float], Point[Payload]], start: Point[Payload], evaluations: int = 20
    ) -> None:
        self._evaluate, self._start, self._most = evaluate, start, evaluations
        self._high = start.value + EPSILON * abs(start.value)
        self._spent, self._finite = 0, True
        self._accepted: Point[Payload] | None = None
        self._best: Point[Payload] | None = None

    def run(self, first: float) -> Search[Payload]:
        """Search from the trial step ``first``.

        When the trials are spent the lowest one below the start is the result, if there is one.
        """
        try:
            low, high = self._bracket(self._at(first))
            spent = 0
            while self._spent > spent:  # else the bracket is as small as its ends are known
                width, spent = high.step - low.step, self._spent
                low, high = self._secant2(low, high)
                if high.step - low.step > GAMMA * width:
                    low, high = self._update(low, high, 0.5 * (low.step + high.step))
        except Enough:
            pass
        return Search(self._accepted or self._best, self._spent, self._finite)

    def _bracket(self, trial: Point[Payload]) -> Pair[Payload]:
        """B0 to B3: two steps with a minimiser in between; a trial that is not finite is too long."""
        low = self._start
        while True:
            if not trial.finite:
                return self._between(low, trial)
            if trial.slope >= 0:
                return low, trial
            if trial.value > self._high:
                return self._between(self._start, trial)
            low, trial = trial, self._at(RHO * trial.step)

    def _between(self, low: Point[Payload], high: Point[Payload]) -> Pair[Payload]:
        """U3: cut until the upper end has a slope of at least 0. Each cut is a trial, so that it ends."""
        while True:
            middle = self._at((1 - THETA) * low.step + THETA * high.step)
            if middle.finite and middle.slope >= 0:
                return low, middle
            if middle.finite and middle.value <= self._high:
                low = middle
            else:
                high = middle

    def _update(self, low: Point[Payload], high: Point[Payload], step: float) -> Pair[Payload]:
        """U0 to U3: the bracket after a trial within it."""
        if not low.step < step < high.step:
            return low, high
        trial = self._at(step)
        if not trial.finite:
            return self._between(low, trial)
        if trial.slope >= 0:
            return low, trial
        return (trial, high) if trial.value <= self._high else self._between(low, trial)

    def _secant2(self, low: Point[Payload], high: Point[Payload]) -> Pair[Payload]:
        """S1 to S4: two secant steps, the second from the end that moved."""
        step = secant(low, high)
        new_low, new_high = self._update(low, high, step)
        if step == new_high.step:
            return self._update(new_low, new_high, secant(high, new_high))
        if step == new_low.step:
            return self._update(new_low, new_high, secant(low, new_low))
        return new_low, new_high

    def _at(self, step: float) -> Point[Payload]:
        """The trial at a step.

        Raises:
            Enough: it is accepted, or was the last one.
        """
        self._spent += 1
        point = self._evaluate(step)
        self._finite = self._finite and point.finite
        if point.finite and point.value < min(self._start.value, self._best.value if self._best else math.inf):
            self._best = point
        if self._good(point):
            self._accepted = point
        if self._accepted or self._spent >= self._most:
            raise Enough
        return point

    def _good(self, point: Point[Payload]) -> bool:
        """T1 and T2."""
        slope = self._start.slope
        if not (point.finite and point.step > 0 and point.slope >= SIGMA * slope):
            return False
        decreases = point.value - self._start.value <= DELTA * point.step * slope
        return decreases or (point.value <= self._high and point.slope <= (2 * DELTA - 1) * slope)


def secant(a: Point[Payload], b: Point[Payload]) -> float:
    """Where the line through both slopes is 0; NaN where it is nowhere."""
    rise = b.slope - a.slope
    return (a.step * b.slope - b.step * a.slope) / rise if rise else math.nan
