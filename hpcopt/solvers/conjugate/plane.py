"""Conjugate directions whose step and beta are one: the best point of a plane by the damped Gauss-Newton model.

    z = -P g;    d = c1 z + c2 dbar;    c = argmin g^T V c + 1/2 c^T V^T (G + lambda I) V c,    V = (z, dbar)

dbar is the previous step. Where f is a quadratic and G its Hessian, c1 is the exact step and c2 / c1 the beta of
preconditioned conjugate gradients, whichever formula it is taken from. P is damped by the same lambda. The curvature
in the plane takes one forward pass with two tangents (Martens and Grosse 2015, arXiv 1503.05671, section 7, whose
momentum this is). Shapes: n parameters, k directions, 1 or 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from hpcopt.linalg.two_directions import combination, decrease
from hpcopt.objective.protocol import Batch, Objective, Vector
from hpcopt.solvers.agreement import agreed_coefficients, agreed_inner
from hpcopt.solvers.averaging import empty_average, take_into_average
from hpcopt.solvers.damping import after_step, clipped
from hpcopt.solvers.preconditioners.protocol import Preconditioner
from hpcopt.solvers.solver import State, StepReport
from hpcopt.solvers.start import count_failure, empty_start, evaluate_start, noise
from hpcopt.solvers.trials import Trials

if TYPE_CHECKING:
    from hpcopt.solvers.nlcg import NLCG

TRIALS = 3
"""Points tried in a step, each with REJECTED times the lambda of the last; the last one without dbar."""

REJECTED = 4.0
"""Factor of lambda where the loss rose."""


@dataclass(frozen=True)
class Plane:
    """What the model knows of the steps V c from w.

    Attributes:
        directions: V^T, (k, n): z and, where there is one, dbar.
        slopes: V^T g, (k,), float64.
        gram: V^T V, (k, k), float64.
        curvatures: V^T G V, (k, k), float64.
    """

    directions: torch.Tensor
    slopes: torch.Tensor
    gram: torch.Tensor
    curvatures: torch.Tensor

    @property
    def finite(self) -> bool:
        """Whether all numbers are."""
        return all(bool(each.isfinite().all()) for each in (self.slopes, self.gram, self.curvatures))

    def best(self, shift: float, count: int) -> tuple[torch.Tensor, float, float]:
        """The best step along the first ``count`` directions of the model with G + shift I.

        Returns:
            c, zeros for the other directions; what the model promises; and |V c|.
        """
        matrix = (self.curvatures + shift * self.gram)[:count, :count]
        found = combination(self.slopes[:count], matrix, self.directions.dtype)
        promised = decrease(self.slopes[:count], matrix, found)
        square = float(found @ self.gram[:count, :count] @ found)
        return torch.cat([found, found.new_zeros(len(self.slopes) - count)]), promised, math.sqrt(max(square, 0.0))


class PlaneSearch:
    """The default of NLCG.

    Args:
        options: of the method.
        preconditioner: P.
    """

    def __init__(self, options: NLCG, preconditioner: Preconditioner) -> None:
        self._options, self._preconditioner = options, preconditioner

    def init(self, objective: Objective) -> State:
        """Parameters, what is known there, lambda, dbar, the mean of the iterates, and what P keeps."""
        state = empty_start(objective.initial_vector())
        parameters = cast(Vector, state["parameters"])
        state |= {
            "damping": float(self._options.damping),
            "previous": torch.zeros_like(parameters),
            "has_previous": False,
            "promised": 0.0,
            "failures": 0,
            "subsets": 0,
        }
        if self._options.average:
            state |= empty_average(parameters)
        return state | self._preconditioner.init(objective, parameters)

    def step(self, objective: Objective, state: State, batch: Batch) -> tuple[State, StepReport]:
        """One step. *Collective*: one reduction of n numbers, what P needs, and a few of scalars."""
        pending = self._preconditioner.begin(objective, state, batch)
        report = evaluate_start(objective, state, batch)
        if report.finite:
            self._look_back(objective, state, batch)
        self._preconditioner.end(objective, state, pending, float(state["damping"]))
        report.damping = float(state["damping"])
        if not report.gradient_norm > 0:
            return state, report
        plane = self._plane(objective, state, batch)
        report.finite = plane.finite
        if plane.finite:
            self._search(objective, state, batch, plane, report)
        if not report.accepted:
            state["has_previous"] = False
            count_failure(state, batch, report)
        if self._options.average:
            take_into_average(state, batch, self._options.average)
        report.damping = float(state["damping"])
        return state, report

    def _look_back(self, objective: Objective, state: State, batch: Batch) -> None:
        """Correct lambda by what the last step gained on this batch, which it has not seen. *Collective*, a value."""
        options, promised = self._options, float(state["promised"])
        state["promised"] = 0.0
        if batch.indices is None or options.damping_control != "next_batch" or not promised > 0:
            return
        before = cast(Vector, state["parameters"]) - cast(Vector, state["previous"])
        gained = objective.value(before, batch) - float(state["loss"])
        bounds = {"bad": options.next_increase_below, "good": options.next_decrease_above}
        factors = options.damping_increase, options.damping_decrease
        state["damping"] = after_step(float(state["damping"]), gained, promised, *factors, **bounds)

    def _plane(self, objective: Objective, state: State, batch: Batch) -> Plane:
        """The model in the plane of this step. *Collective*, three small reductions at most."""
        gradient, parameters = cast(Vector, state["gradient"]), cast(Vector, state["parameters"])
        rows = [self._preconditioner.apply(state, gradient).neg_()]
        if state["has_previous"]:
            rows.append(cast(Vector, state["previous"]))
        directions = torch.stack(rows)
        products = agreed_inner(objective)(directions, torch.stack([*rows, gradient]))
        curvatures = objective.linearize(parameters, self._samples(objective, state, batch)).curvatures(directions)
        return Plane(directions, products[:, -1], products[:, :-1], curvatures)

    def _samples(self, objective: Objective, state: State, batch: Batch) -> Batch:
        """The part of the batch whose curvature is taken. *Collective*, one number a rank unless it is all of it."""
        size = max(self._options.subset_least, round(self._options.subset * batch.total))
        if size >= batch.total:
            return batch
        state["subsets"] = int(state["subsets"]) + 1
        return objective.subset(batch, size, int(state["subsets"]) - 1)

    def _search(self, objective: Objective, state: State, batch: Batch, plane: Plane, report: StepReport) -> None:
        """Try the best point of the plane, with more and more damping, until the loss falls. *Collective*."""
        pairs, parameters = self._preconditioner.wants_pairs, cast(Vector, state["parameters"])
        trials = Trials(objective, state, batch, with_gradient=pairs)
        for number in range(TRIALS):
            count = 1 if number == TRIALS - 1 else len(plane.slopes)
            best, *foretold = plane.best(float(state["damping"]), count)
            best, (promised, norm) = agreed_coefficients(objective, best, *foretold)
            direction = best.to(plane.directions) @ plane.directions
            point = parameters + direction
            after = trials.value(point, likely=number == 0)
            report.finite, report.inner_iterations = report.finite and math.isfinite(after), number + 1
            if after < report.loss:
                change = trials.gradient(point) - cast(Vector, state["gradient"]) if pairs else None
                trials.move(point, after)
                if change is not None:
                    self._preconditioner.observe(objective, state, direction, change)
                report.accepted, report.loss_after, report.predicted = True, after, float(promised)
                report.step_norm, report.step_size = float(norm), float(best[0])
                self._judge(state, batch, direction, report)
                return
            state["damping"] = clipped(REJECTED * float(state["damping"]))

    def _judge(self, state: State, batch: Batch, direction: Vector, report: StepReport) -> None:
        """Keep the step for the next one, and let lambda follow how well the model foretold the loss."""
        options, slack = self._options, noise(state)
        gained, promised = report.loss - report.loss_after + slack, report.predicted + slack
        report.rho = gained / promised if promised else math.nan
        own = batch.indices is None or options.damping_control == "batch"
        factors = options.damping_increase**2, options.damping_decrease if own else 1.0
        foretold = (gained, promised) if promised > 0 else (0.0, 1.0)
        damping = after_step(float(state["damping"]), *foretold, *factors)
        state |= {"damping": damping, "has_previous": True, "promised": max(report.predicted, 0.0), "failures": 0}
        cast(Vector, state["previous"]).copy_(direction)
