"""The loss at points that one step tries; on full batches a trial can bring the next step's gradient along."""

from __future__ import annotations

import math

from hpcopt.objective.protocol import Batch, Objective, Vector
from hpcopt.solvers.agreement import agreed_dot
from hpcopt.solvers.solver import State
from hpcopt.solvers.start import move


class Trials:
    """Losses at points (n,), and what is known at the latest one, for the step that moves there.

    Args:
        objective: the problem.
        state: the solver's, as of ``empty_start``.
        batch: of the step.
        with_gradient: whether the gradient of the point that is accepted is wanted in any case.
    """

    def __init__(self, objective: Objective, state: State, batch: Batch, with_gradient: bool = False) -> None:
        self._objective, self._state, self._batch = objective, state, batch
        self._wants_gradient = with_gradient or (batch.indices is None and objective.deterministic)
        self._gradient: Vector | None = None
        self._square = math.nan

    def value(self, point: Vector, likely: bool) -> float:
        """The loss f at a point; NaN where its gradient is not finite. *Collective*.

        Args:
            point: w, (n,).
            likely: whether the step will probably end here. Then the gradient is evaluated too, where the next step
                begins with it or it is wanted: together they cost less than the value now and the gradient later.
        """
        if self._gradient is not None:  # of a trial that was rejected
            self._objective.release(self._gradient)
            self._gradient = None
        if not (likely and self._wants_gradient):
            return self._objective.value(point, self._batch)
        loss, gradient = self._objective.value_and_gradient(point, self._batch)
        self._square = agreed_dot(self._objective, gradient, gradient)
        self._gradient = gradient
        return loss if math.isfinite(self._square) else math.nan

    def gradient(self, point: Vector) -> Vector:
        """That of the latest point tried, evaluated if it is not known yet. *Collective*."""
        return self._objective.value_and_gradient(point, self._batch)[1] if self._gradient is None else self._gradient

    def move(self, point: Vector, loss: float) -> None:
        """Accept the latest point tried."""
        if self._gradient is not None:
            move(self._state, self._batch, point, loss, self._gradient, self._square)
            return
        self._state["parameters"].copy_(point)  # type: ignore[union-attr]
        self._state["known"] = False
