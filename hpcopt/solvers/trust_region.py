"""The trust-region method: no learning rate, one gradient an iteration, and a loss that never rises on a full batch.

    s = argmin g^T s + 1/2 s^T B s over |s| <= radius;   accept when f(w) - f(w + s) >= eta * predicted decrease

(Conn, Gould and Toint 2000, algorithm 6.1.1; constants as in their section 17.1 and Nocedal and Wright 2006, ch. 4).
Models: L-SR1 with the exact subproblem, the L-BFGS direction cut to the radius, and first order. The gradient at every
trial point is taken with its value, so rejected trials improve the model too, and on a full batch it is the gradient of
the next iteration. Shapes: n parameters, m pairs at most.

Measured, train loss / test accuracy after 60 gradients on full batches in float32; mnist-5k, 4,000 images to train:

    network, starts                  first order     L-SR1            L-BFGS
    784-128-10 ReLU, 3               0.26 / 90.9 %   0.004 / 93.8 %   1e-7 / 93.0 %
    784-128-10 tanh, 3               0.18 / 91.8 %   0.003 / 93.3 %   1e-9 / 91.7 %
    784-256-128-64-10 ReLU, 3        0.47 / 85.6 %   0.010 / 93.8 %   0.08 / 92.2 %
    784-512-512-10 ReLU, 1           0.32 / 89.5 %   0.003 / 94.4 %   0.005 / 93.9 %
    784-128-10 ReLU, all of MNIST, 1 -               0.054 / 97.6 %   0.044 / 97.6 %

So L-SR1, the default, does better on little data; L-BFGS ends at the lower training loss where the network is easy. The
default of ``curvature_outside`` was chosen on the first and third of these problems, which flatters L-SR1 there. On
convex quadratics with many different curvatures L-BFGS converges much faster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from hpcopt.linalg.compact import CompactModel
from hpcopt.linalg.lbfgs import lbfgs_accepts
from hpcopt.linalg.lsr1 import lsr1_accepts
from hpcopt.linalg.pairs import PairMemory
from hpcopt.linalg.quasi_newton import Candidate, lbfgs_candidate, lsr1_candidate, steepest_candidate
from hpcopt.objective.protocol import Batch, Objective, Vector
from hpcopt.solvers.agreement import agreed_coefficients, agreed_dot, agreed_inner, memory_in, memory_to
from hpcopt.solvers.checks import Needs, check_choice, check_count, check_effects, check_number, fail
from hpcopt.solvers.solver import State, StepReport, StopReason
from hpcopt.solvers.start import empty_start, evaluate_start, first_length, is_stationary, move, noise

MODELS = ("lsr1", "lbfgs", "first_order")

NEAR_BOUNDARY = 0.8
"""The radius may grow only after a step of at least this part of it: a shorter one says nothing about the radius."""

NOT_FINITE_SHRINK = 0.1
"""Factor of the radius after a trial point without a finite loss and gradient: nothing is known there but "too far"."""


@dataclass(frozen=True)
class Trial:
    """A step that is tried: the vector, |s|, predicted decrease, inner iterations, and B to judge the new pair by."""

    step: Vector
    norm: float
    predicted: float
    iterations: int
    model: CompactModel | None


def check_radii(solver: Any) -> None:
    """Check the bounds of the radius, the thresholds on the ratio and the factors of the radius, of any such method.

    Raises:
        UsageError: one of them breaks its rule, or they are out of order.
    """
    for key in ("radius_min", "radius_max"):
        check_number(solver, key, 0.0, open_low=True)
    if solver.radius_min > solver.radius_max:
        fail(solver, "radius_min", f"must be at most radius_max = {solver.radius_max:g}")
    if solver.radius_initial is not None:
        check_number(solver, "radius_initial", solver.radius_min, solver.radius_max)
    check_number(solver, "accept", 0.0, 1.0, open_high=True)
    for key in ("shrink_below", "grow_above", "shrink"):
        check_number(solver, key, 0.0, 1.0, open_low=True, open_high=True)
    check_number(solver, "grow", 1.0, open_low=True)
    if not solver.accept <= solver.shrink_below < solver.grow_above:
        bounds = f"from accept = {solver.accept:g} to below grow_above = {solver.grow_above:g}"
        fail(solver, "shrink_below", f"must be {bounds}")


@dataclass(frozen=True, kw_only=True)
class TrustRegion:
    """Trust-region method with a quasi-Newton model; nothing in it needs tuning."""

    NEEDS: ClassVar[Needs] = {
        "memory": ({"model": ("lsr1", "lbfgs")},),
        "curvature_outside": ({"model": ("lsr1",)},),
    }

    model: str = "lsr1"
    """The quadratic model: "lsr1" (exact subproblem), "lbfgs" (direction cut to the radius) or "first_order"."""
    memory: int = 10
    """Pairs (step, gradient change) that the model is built from; each costs two vectors of n numbers."""
    radius_initial: float | None = None
    """First radius. Default: |f| / |g|, the step at which the linear model of the loss is 0, but at most |w|; it has
    the units of w whatever the scale of loss and parameters, and the first iterations correct it by factors of 2."""
    radius_min: float = 1e-10
    """A full-batch run stops when the radius falls below this (or below the rounding of w)."""
    radius_max: float = 1e6
    """The radius never grows beyond this."""
    accept: float = 0.1
    """A step is accepted when the loss falls by at least this part of the predicted decrease."""
    shrink_below: float = 0.25
    """The radius shrinks when actual over predicted decrease is below this."""
    grow_above: float = 0.75
    """The radius grows when actual over predicted decrease is above this and the step was near the boundary."""
    shrink: float = 0.5
    """New radius over length of the step when it shrinks."""
    grow: float = 2.0
    """New radius over old radius when it grows."""
    curvature_outside: float = 0.01
    """L-SR1: curvature outside of the pairs' span, as a share of the median curvature |y| / |s| of the pairs. On the
    first network above shares from 0.003 to 0.1 end between 0.003 and 0.03 after 60 gradients, on the third 0.01 is
    best; y^T y / s^T y of the newest pair, usual for L-BFGS, ends at 0.2 on the first."""

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            UsageError: an option breaks its rule.
        """
        check_choice(self, "model", MODELS)
        check_count(self, "memory")
        check_number(self, "curvature_outside", 0.0, open_low=True)
        check_radii(self)
        check_effects(self)

    def init(self, objective: Objective) -> State:
        """Parameters, loss and gradient there once they are known, the radius (0: not chosen yet), and the pairs."""
        return self.start(objective.initial_vector())

    def start(self, parameters: Vector) -> State:
        """As ``init``, from any point (n,)."""
        state = empty_start(parameters) | {"radius": 0.0}
        memory = 0 if self.model == "first_order" else self.memory
        memory_to(state, PairMemory.empty(parameters, memory))
        return state

    def step(self, objective: Objective, state: State, batch: Batch) -> tuple[State, StepReport]:
        """One trial. *Collective*: one gradient on a full batch, two on a mini-batch (both on the same samples)."""
        report = evaluate_start(objective, state, batch)
        report.radius = float(state["radius"])
        if not report.gradient_norm > 0:
            return state, report
        if state["radius"] == 0:
            state["radius"] = self._first_radius(objective, state)
        trial = self._propose(objective, state)
        point = state["parameters"] + trial.step
        after, gradient = objective.value_and_gradient(point, batch)
        after_square = agreed_dot(objective, gradient, gradient)
        report.predicted, report.inner_iterations = trial.predicted, trial.iterations
        report.finite = math.isfinite(after) and math.isfinite(after_square)
        if report.finite:
            self._judge(state, trial, after, report)
            self._learn(objective, state, trial, gradient)
        else:
            state["radius"] = NOT_FINITE_SHRINK * min(trial.norm, float(state["radius"]))
        if report.accepted:
            move(state, batch, point, after, gradient, after_square)
        else:
            self._bound(objective, state, batch, report)
        report.radius = float(state["radius"])
        return state, report

    def _first_radius(self, objective: Objective, state: State) -> float:
        radius = self.radius_initial or first_length(objective, state)
        return min(max(radius, self.radius_min), self.radius_max)

    def _candidate(self, objective: Objective, state: State, memory: PairMemory) -> Candidate:
        gradient: Vector = state["gradient"]  # type: ignore[assignment]
        square, radius = float(state["gradient_square"]), float(state["radius"])
        if not memory.stored and self.model != "lsr1":
            return steepest_candidate(len(memory.gram), square, radius)
        products = memory.products(gradient, agreed_inner(objective))
        if self.model == "lbfgs":
            return lbfgs_candidate(memory, products, square, radius)
        tolerance = 100 * torch.finfo(gradient.dtype).eps
        return lsr1_candidate(memory, products, square, radius, self.curvature_outside, tolerance)

    def _propose(self, objective: Objective, state: State) -> Trial:
        """The step of the model, cut to the radius; steepest descent when rounding has spoilt the model's step."""
        memory, radius = memory_in(state), float(state["radius"])
        trial = self._measure(objective, state, memory, self._candidate(objective, state, memory))
        if not (trial.predicted > 0 and math.isfinite(trial.predicted) and 0 < trial.norm <= 1.001 * radius):
            memory.forget()
            memory_to(state, memory)
            plain = steepest_candidate(len(memory.gram), float(state["gradient_square"]), radius)
            trial = self._measure(objective, state, memory, plain)
        return trial

    def _measure(self, objective: Objective, state: State, memory: PairMemory, candidate: Candidate) -> Trial:
        """Form the step and take its length and slope from the vector itself, not from the coefficients."""
        gradient: Vector = state["gradient"]  # type: ignore[assignment]
        coefficients, (factor, sigma) = agreed_coefficients(
            objective, candidate.coefficients, candidate.factor, candidate.sigma
        )
        candidate = replace(candidate, factor=float(factor), sigma=float(sigma))
        step = memory.combine(coefficients).add_(gradient, alpha=candidate.factor)
        square, slope = objective.agree(objective.dot(step, step), objective.dot(gradient, step))
        norm = math.sqrt(square)
        part = min(1.0, float(state["radius"]) / norm) if norm > 0 else 1.0
        predicted = candidate.predicted(slope, norm, part)
        return Trial(step.mul_(part), norm * part, predicted, candidate.iterations, candidate.model)

    def _judge(self, state: State, trial: Trial, after: float, report: StepReport) -> None:
        """Accept or reject, and the new radius. Nothing is divided by a decrease that may be 0."""
        slack = noise(state)
        actual, radius = report.loss - after, float(state["radius"])
        gained, promised = actual + slack, trial.predicted + slack
        report.rho = gained / promised
        report.accepted = actual > 0 and gained >= self.accept * promised
        if report.accepted:
            report.loss_after, report.step_norm = after, trial.norm
        if gained < self.shrink_below * promised or not report.accepted:
            state["radius"] = self.shrink * min(trial.norm, radius)
        elif gained > self.grow_above * promised and trial.norm >= NEAR_BOUNDARY * radius:
            state["radius"] = min(self.grow * radius, self.radius_max)

    def _learn(self, objective: Objective, state: State, trial: Trial, gradient: Vector) -> None:
        """Offer the pair of this trial, accepted or not, to the model; both gradients are of the same batch."""
        if self.model == "first_order":
            return
        memory = memory_in(state)
        memory.offer(trial.step, gradient - state["gradient"], agreed_inner(objective))
        useful = lbfgs_accepts(memory) if trial.model is None else lsr1_accepts(memory, trial.model)
        if objective.agree(float(useful))[0]:
            memory.keep()
        memory_to(state, memory)

    def _bound(self, objective: Objective, state: State, batch: Batch, report: StepReport) -> None:
        """After a rejection: end a full-batch run whose radius is spent; on mini-batches keep the radius usable."""
        parameters: Vector = state["parameters"]  # type: ignore[assignment]
        eps = torch.finfo(parameters.dtype).eps
        smallest = max(self.radius_min, eps * math.sqrt(agreed_dot(objective, parameters, parameters)))
        if state["radius"] >= smallest:
            return
        state["radius"] = smallest
        if batch.indices is None and report.finite:
            report.stop = StopReason.GRADIENT_SMALL if is_stationary(state) else StopReason.RADIUS_SMALL
