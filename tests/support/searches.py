"""Functions of one variable for line searches, with their slopes."""

from __future__ import annotations

from collections.abc import Callable

Function = Callable[[float], float]

FUNCTIONS: dict[str, tuple[Function, Function]] = {
    "quadratic": (lambda t: (t - 1) ** 2, lambda t: 2 * (t - 1)),
    "quartic": (lambda t: (t - 3) ** 4, lambda t: 4 * (t - 3) ** 3),
    # More and Thuente 1994, "Line search algorithms with guaranteed sufficient decrease", eqs. 5.1 and 5.2
    "more-thuente 1": (lambda t: -t / (t * t + 2), lambda t: (t * t - 2) / (t * t + 2) ** 2),
    "more-thuente 2": (
        lambda t: (t + 0.004) ** 5 - 2 * (t + 0.004) ** 4,
        lambda t: 5 * (t + 0.004) ** 4 - 8 * (t + 0.004) ** 3,
    ),
}


class Recorded:
    """A function that remembers where it was evaluated."""

    def __init__(self, function: Function) -> None:
        self.function, self.tried = function, list[float]()

    def __call__(self, t: float) -> float:
        """The value there."""
        self.tried.append(t)
        return self.function(t)
