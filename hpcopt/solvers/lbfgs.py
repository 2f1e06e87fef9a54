"""L-BFGS with a line search for the strong Wolfe conditions (Nocedal and Wright 2006, algorithms 7.4, 7.5, 3.5, 3.6).

All ranks take the same branches: every number that decides is a reduced loss or an agreed product. On mini-batches both
gradients of a pair are of the same batch, as the line search has them at both ends.
Shapes: n parameters, m pairs at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpcopt.linalg.lbfgs import lbfgs_accepts, two_loop
from hpcopt.linalg.line_search import Point, Search, StrongWolfe
from hpcopt.linalg.pairs import PairMemory
from hpcopt.objective.protocol import Batch, Objective, Vector
from hpcopt.solvers.agreement import agreed_coefficients, agreed_inner, memory_in, memory_to
from hpcopt.solvers.checks import check_count, check_number, fail
from hpcopt.solvers.ray import Place, ray
from hpcopt.solvers.solver import State, StepReport
from hpcopt.solvers.start import count_failure, empty_start, evaluate_start, first_length, move

DESCENT = 1e-8
"""A direction counts as descent when -g^T d is above this part of |g| |d|."""

RETRY_SHORTER = 0.01
"""After a failed line search the next one along -g begins with a step shorter by this factor."""


@dataclass(frozen=True, kw_only=True)
class LBFGS:
    """Limited-memory BFGS; no learning rate, every step has sufficient decrease on its batch."""

    memory: int = 10
    """Pairs (step, gradient change) that the direction is built from; each costs two vectors of n numbers."""
    armijo: float = 1e-4
    """c1: the loss must fall by this part of what the slope promises."""
    curvature: float = 0.9
    """c2: the slope must shrink to this part of its size at the start."""
    evaluations: int = 20
    """Most gradients in one line search; 1 or 2 are usual."""

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            UsageError: an option breaks its rule.
        """
        check_count(self, "memory")
        check_count(self, "evaluations")
        check_number(self, "armijo", 0.0, 0.5, open_low=True)
        check_number(self, "curvature", 0.0, 1.0, open_low=True, open_high=True)
        if self.armijo >= self.curvature:
            fail(self, "armijo", f"must be below curvature = {self.curvature:g}")

    def init(self, objective: Objective) -> State:
        """Parameters, the loss and gradient there once they are known, the pairs, and line searches failed in a row."""
        state = empty_start(objective.initial_vector()) | {"failures": 0}
        memory_to(state, PairMemory.empty(state["parameters"], self.memory))  # type: ignore[arg-type]
        return state

    def step(self, objective: Objective, state: State, batch: Batch) -> tuple[State, StepReport]:
        """One line search. *Collective*. A loss or gradient that is not finite counts as a step too long."""
        report = evaluate_start(objective, state, batch)
        if not report.gradient_norm > 0:
            return state, report
        direction, slope, norm, first = self._direction(objective, state)
        search = self._search(objective, state, batch, direction, slope, first)
        report.finite, report.inner_iterations = search.finite, search.evaluations
        if search.point is None and state["pairs_stored"]:
            state["pairs_stored"] = 0
            direction, slope, norm, first = self._direction(objective, state)
            search = self._search(objective, state, batch, direction, slope, first)
            report.finite = report.finite and search.finite
            report.inner_iterations += search.evaluations
        if search.point is None:
            count_failure(state, batch, report, most=2, least=2)
        else:
            self._accept(objective, state, batch, direction, search.point)
            report.accepted, report.loss_after = True, search.point.value
            report.step_size, report.step_norm = search.point.step, search.point.step * norm
        return state, report

    def _direction(self, objective: Objective, state: State) -> tuple[Vector, float, float, float]:
        """Direction d (n,), slope g^T d, |d| and the first step to try; steepest descent where H g is no descent."""
        gradient: Vector = state["gradient"]  # type: ignore[assignment]
        memory = memory_in(state)
        size = math.sqrt(float(state["gradient_square"]))
        if memory.stored:
            coefficients, factor = two_loop(memory, memory.products(gradient, agreed_inner(objective)))
            coefficients, (factor_agreed,) = agreed_coefficients(objective, coefficients, factor)
            direction = memory.combine(coefficients).add_(gradient, alpha=float(factor_agreed))
            slope, square = objective.agree(objective.dot(gradient, direction), objective.dot(direction, direction))
            norm = math.sqrt(square)
            if -slope > DESCENT * size * norm and math.isfinite(norm):
                return direction, slope, norm, 1.0
            state["pairs_stored"] = 0
        first = first_length(objective, state) / size * RETRY_SHORTER ** int(state["failures"])
        return -gradient, -size * size, size, first

    def _search(
        self, objective: Objective, state: State, batch: Batch, direction: Vector, slope: float, first: float
    ) -> Search[Place]:
        evaluate, start = ray(objective, state, batch, direction, slope)
        return StrongWolfe(evaluate, start, self.armijo, self.curvature, self.evaluations).run(first)

    def _accept(self, objective: Objective, state: State, batch: Batch, direction: Vector, end: Point[Place]) -> None:
        """Move, and keep the pair where its curvature is positive enough."""
        point, gradient, square = end.payload
        memory = memory_in(state)
        memory.offer(direction.mul_(end.step), gradient - state["gradient"], agreed_inner(objective))
        if lbfgs_accepts(memory):
            memory.keep()
        memory_to(state, memory)
        move(state, batch, point, end.value, gradient, square)
        state["failures"] = 0
