"""Conjugate directions with a line search: no learning rate, every step has sufficient decrease on its batch.

    d <- -P g + beta d;   w <- w + t d        with t by the strong Wolfe conditions or by Hager and Zhang's

All ranks take the same branches: every number that decides is a reduced loss or an agreed product. The products of one
iteration are one pack: a trial costs one reduction of the gradient with the loss and one of the slope, a step one more
of scalars, and one of a value that tells where the first trial is worth while. The pair (s, y) of a step is of one
batch, since the search has gradients at both ends.
Shapes: n parameters of this rank.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from hpcopt.linalg.conjugacy import Pack, conjugacy
from hpcopt.linalg.hager_zhang import HagerZhang
from hpcopt.linalg.line_search import Point, Search, StrongWolfe
from hpcopt.objective.protocol import Batch, Objective, Vector
from hpcopt.solvers.agreement import agreed_dot
from hpcopt.solvers.averaging import empty_average, take_into_average
from hpcopt.solvers.conjugate.controlled import DESCENT
from hpcopt.solvers.preconditioners.protocol import Preconditioner
from hpcopt.solvers.products import products
from hpcopt.solvers.ray import Place, ray
from hpcopt.solvers.solver import State, StepReport
from hpcopt.solvers.start import count_failure, empty_start, evaluate_start, move, noise

if TYPE_CHECKING:
    from hpcopt.solvers.nlcg import NLCG

ARMIJO, CURVATURE = 1e-4, 0.4
"""Constants of the strong Wolfe conditions, as in scipy's ``fmin_cg``: below 1/2, so that fr and dy descend."""

ORTHOGONAL = 0.1
"""Gradients one after the other have a product below this part of g^T P g, else fr and dy are restarted (Nocedal and
Wright 2006, eq. 5.52); the other rules do that by themselves."""

REACH = 1000.0
"""The first trial is at most this times longer than the guess it is made from."""

SHORTER = 10.0
"""What a guess is divided by where its value is not finite, and multiplied by where the loss bends downwards there."""

RETRY_SHORTER = 0.01
"""After a failed line search the next one begins with a step shorter by this factor."""


class ConjugateDirections:
    """The step rules "strong_wolfe" and "hager_zhang".

    Args:
        options: of the method.
        preconditioner: P.
    """

    def __init__(self, options: NLCG, preconditioner: Preconditioner) -> None:
        self._options, self._preconditioner = options, preconditioner

    def init(self, objective: Objective) -> State:
        """Loss and gradient once they are known, the previous direction, what it did, and P's own."""
        parameters = objective.initial_vector()
        state: State = empty_start(parameters) | {
            "direction": torch.zeros_like(parameters),
            "change": torch.zeros_like(parameters),
            "has_direction": False,
            "previous_product": 0.0,
            "previous_square": 0.0,
            "previous_step": 0.0,
            "failures": 0,
        }
        if self._options.average:
            state |= empty_average(parameters)
        return state | self._preconditioner.init(objective, parameters)

    def step(self, objective: Objective, state: State, batch: Batch) -> tuple[State, StepReport]:
        """One line search. *Collective*. A loss or gradient that is not finite counts as a step too long."""
        pending = self._preconditioner.begin(objective, state, batch)
        report = evaluate_start(objective, state, batch)
        self._preconditioner.end(objective, state, pending, self._options.damping)
        if not report.gradient_norm > 0:
            state["has_direction"] = bool(state["has_direction"]) and report.finite
            return state, report
        conjugate = bool(state["has_direction"])
        product = self._search(objective, state, batch, report)
        if not report.accepted and conjugate:
            state["has_direction"] = False
            product = self._search(objective, state, batch, report)
        if report.accepted:
            state["previous_product"] = product
        else:
            self._preconditioner.restart(objective, state)
            count_failure(state, batch, report, most=2, least=2)
        if self._options.average:
            take_into_average(state, batch, self._options.average)
        return state, report

    def _search(self, objective: Objective, state: State, batch: Batch, report: StepReport) -> float:
        """Search along the next direction, and move there when a step is found; returns g^T P g. *Collective*."""
        product, slope, norm = self._next_direction(objective, state)
        if not (math.isfinite(norm) and slope < 0):
            report.finite = report.finite and math.isfinite(norm)
            return product
        direction: Vector = state["direction"]  # type: ignore[assignment]
        evaluate, start = ray(objective, state, batch, direction, slope)
        search: StrongWolfe[Place] | HagerZhang[Place]
        if self._options.step_rule == "hager_zhang":
            search = HagerZhang(evaluate, start, self._options.evaluations)
        else:
            search = StrongWolfe(evaluate, start, ARMIJO, CURVATURE, self._options.evaluations)
        first, finite = self._first_step(objective, state, batch, slope, self._guess(objective, state, slope, norm))
        found: Search[Place] = search.run(first)
        report.finite = report.finite and finite and found.finite
        report.inner_iterations += found.evaluations
        if found.point is not None:
            self._accept(objective, state, batch, found.point)
            report.accepted, report.loss_after = True, found.point.value
            report.step_size, report.step_norm = found.point.step, found.point.step * norm
        return product

    def _next_direction(self, objective: Objective, state: State) -> tuple[float, float, float]:
        """Turn the state's direction into the next one; g^T P g, the slope and the length of it. One pack."""
        gradient: Vector = state["gradient"]  # type: ignore[assignment]
        direction: Vector = state["direction"]  # type: ignore[assignment]
        change: Vector = state["change"]  # type: ignore[assignment]
        z = self._preconditioner.apply(state, gradient)
        pairs = [(gradient, z), (z, z)]
        if not state["has_direction"]:
            gz, zz = products(objective, pairs)
            torch.neg(z, out=direction)
            return gz, -gz, math.sqrt(zz)
        pairs += [(z, change), (direction, change), (gradient, direction), (direction, direction), (z, direction)]
        if self._options.beta == "hz":
            pairs.append((change, self._preconditioner.apply(state, change)))
        gz, zz, zy, dy, gd, dd, zd, *yz = products(objective, pairs)
        before = float(state["previous_product"])
        pack = Pack(gz, before, zy, dy, gd, yz[0] if yz else 0.0, dd, float(state["previous_square"]))
        most = math.inf if self._options.beta_max is None else self._options.beta_max
        beta = conjugacy(self._options.beta, pack, most)
        if self._options.safeguards and (self._jams(gz, zy) or not beta * gd - gz <= -DESCENT * gz):
            beta = 0.0
        direction.mul_(beta).sub_(z)
        return gz, beta * gd - gz, math.sqrt(max(zz - 2 * beta * zd + beta * beta * dd, 0.0))

    def _jams(self, gz: float, zy: float) -> bool:
        """Whether the last step was too short for a rule that would only go on along its direction."""
        return self._options.beta in ("fr", "dy") and not abs(gz - zy) < ORTHOGONAL * gz

    def _guess(self, objective: Objective, state: State, slope: float, norm: float) -> float:
        """The last step length; before there is one, where the linear model of the loss is 0, but at most |w|."""
        shorter = RETRY_SHORTER ** int(state["failures"])
        if state["previous_step"] and not state["failures"]:
            return float(state["previous_step"])
        parameters: Vector = state["parameters"]  # type: ignore[assignment]
        longest = (math.sqrt(agreed_dot(objective, parameters, parameters)) or 1.0) / norm
        return min(abs(float(state["loss"])) / -slope or longest, longest) * shorter

    def _first_step(
        self, objective: Objective, state: State, batch: Batch, slope: float, guess: float
    ) -> tuple[float, bool]:
        """The minimiser of the parabola through value and slope at w and the value at the guess. *Collective*, a value.

        Conjugate gradients need steps that are nearly exact, and this is far cheaper than a narrow search (Hager and
        Zhang 2006, ACM TOMS 32(1), "QuadStep"). Where the bend is lost in rounding the guess stands.

        Returns:
            The step, and whether the value at the guess was finite.
        """
        parameters: Vector = state["parameters"]  # type: ignore[assignment]
        direction: Vector = state["direction"]  # type: ignore[assignment]
        value = objective.value(parameters.add(direction, alpha=guess), batch)
        if not math.isfinite(value):
            return guess / SHORTER, False
        bend = value - float(state["loss"]) - slope * guess
        if not bend > noise(state):
            return (guess if bend > -noise(state) else SHORTER * guess), True
        return min(-0.5 * slope * guess * guess / bend, REACH * guess), True

    def _accept(self, objective: Objective, state: State, batch: Batch, end: Point[Place]) -> None:
        point, gradient, square = end.payload
        change = state["change"] = gradient - state["gradient"]
        if self._preconditioner.wants_pairs:
            step = point - state["parameters"]
            self._preconditioner.observe(objective, state, step, change)
        state |= {"has_direction": True, "previous_square": state["gradient_square"], "failures": 0}
        state["previous_step"] = end.step
        move(state, batch, point, end.value, gradient, square)
