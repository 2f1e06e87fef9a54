"""The loss along a direction, as a line search sees it. *Collective*.

Every trial is one reduction of the gradient with the loss, and one pack of slope and square; what the search decides on
is the same on all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from hpcopt.linalg.line_search import Point
from hpcopt.objective.protocol import Batch, Objective, Vector
from hpcopt.solvers.products import products
from hpcopt.solvers.solver import State


class Place(NamedTuple):
    """A point on the line (n,), the gradient there (n,) and its square."""

    point: Vector
    gradient: Vector
    square: float


def ray(
    objective: Objective, state: State, batch: Batch, direction: Vector, slope: float
) -> tuple[Callable[[float], Point[Place]], Point[Place]]:
    """The evaluation of a step length from w, and what is known at 0.

    Args:
        objective: the problem.
        state: the solver's, in which loss and gradient at w are known.
        batch: of the step.
        direction: d (n,).
        slope: g^T d, the same on all ranks.
    """
    parameters: Vector = state["parameters"]  # type: ignore[assignment]

    def evaluate(step: float) -> Point[Place]:
        """Loss and slope at w + step d. *Collective*."""
        point = parameters.add(direction, alpha=step)
        loss, gradient = objective.value_and_gradient(point, batch)
        slope, square = products(objective, [(gradient, direction), (gradient, gradient)])
        return Point(step, loss if math.isfinite(square) else math.nan, slope, Place(point, gradient, square))

    here = Place(parameters, state["gradient"], float(state["gradient_square"]))  # type: ignore[arg-type]
    return evaluate, Point(0.0, float(state["loss"]), slope, here)
