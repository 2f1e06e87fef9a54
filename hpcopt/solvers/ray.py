"""The loss along a direction, as a line search sees it. *Collective*.

Every trial is one reduction of the gradient with the loss, and one of the slope; what the search decides on is the same
on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from hpcopt.linalg.line_search import Point
from hpcopt.objective.protocol import Batch, Objective, Vector
from hpcopt.solvers.agreement import agreed_dot
from hpcopt.solvers.solver import State

Place: TypeAlias = tuple[Vector, Vector]
"""A point on the line (n,) and the gradient there (n,)."""


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
        point = parameters.add(direction, alpha=step)
        loss, gradient = objective.value_and_gradient(point, batch)
        return Point(step, loss, agreed_dot(objective, gradient, direction), (point, gradient))

    return evaluate, Point(0.0, float(state["loss"]), slope, (parameters, state["gradient"]))  # type: ignore[arg-type]
