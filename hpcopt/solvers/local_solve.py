"""The local phase of APTS: every rank minimises its own objective, corrected to first order, without communication.

    F_d(x) = f_d(x) + (g - g_d)^T (x - w),   g = grad f(w),   g_d = grad f_d(w)

so that grad F_d(w) = g on every rank (additively preconditioned trust-region strategy: Gross and Krause 2009; Cruz
Alegria, Trotti, Kopanicakova and Krause 2025, arXiv 2502.05133). The correction is linear: it drops out of the gradient
changes, so curvature pairs are of this rank's samples alone and stay good from one phase to the next.
Shapes: n parameters, m pairs at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch

from hpcopt.objective import vectors
from hpcopt.objective.protocol import Batch, LocalPart, Objective, Vector
from hpcopt.solvers.fixed_batch import WHOLE
from hpcopt.solvers.solver import State
from hpcopt.solvers.start import empty_start
from hpcopt.solvers.trust_region import Trial, TrustRegion

SPENT = 1e-4
"""The phase ends when less than this part of the budget is left."""

MEMORY_KEYS = ("pairs", "gram", "pairs_stored", "pairs_free", "second_moment", "moments", "loss_scale")
"""What a local solver keeps from phase to phase, besides ``gradient_scale``."""


@dataclass(frozen=True)
class Anchor:
    """The point w (n,) where a phase begins, and what is known there: of all ranks, and of this rank alone."""

    point: Vector
    gradient: Vector
    square: float
    own_loss: float
    own_gradient: Vector


@dataclass(frozen=True)
class LocalStep:
    """What a phase came to: the displacement (n,), its 2-norm, the decrease of F_d, and the trials it took."""

    step: Vector
    norm: float
    decrease: float
    iterations: int


class ConsistentObjective:
    """F_d: this rank's objective with the linear term that gives it the gradient of all ranks at the anchor.

    Args:
        local: f_d.
        batch: the samples, the same in every evaluation.
        anchor: where the correction is taken.
        consistency: "full" corrects loss and gradient, "loss" the loss only (as the published code did), "none" none.
    """

    deterministic = True

    def __init__(self, local: LocalPart, batch: Batch, anchor: Anchor, consistency: str) -> None:
        self._local, self._batch, self._anchor, self._consistency = local, batch, anchor, consistency
        self._residual = anchor.gradient - anchor.own_gradient if consistency != "none" else None

    def start(self) -> State:
        """The state of a trust-region solver at the anchor, where loss and gradient need no evaluation."""
        anchor = self._anchor
        full = self._consistency == "full"
        gradient = anchor.gradient if full else anchor.own_gradient
        square = anchor.square if full else vectors.dot(gradient, gradient)
        known: State = {"loss": anchor.own_loss, "gradient": gradient, "gradient_square": square, "known": True}
        return empty_start(anchor.point.clone()) | known

    def value_and_gradient(self, x: Vector, _: Batch) -> tuple[float, Vector]:
        """F_d(x) and its gradient (n,)."""
        loss, gradient = self._local.value_and_gradient(x, self._batch)
        if self._residual is None:
            return loss, gradient
        if self._consistency == "full":
            gradient.add_(self._residual)
        return loss + vectors.dot(self._residual, x - self._anchor.point), gradient

    def dot(self, x: Vector, y: Vector) -> float:
        """x^T y."""
        return vectors.dot(x, y)

    def inner(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """X Y^T."""
        return vectors.inner(x, y)

    def agree(self, *values: float) -> tuple[float, ...]:
        """The values: this rank decides alone."""
        return values


@dataclass(frozen=True, kw_only=True)
class AdamTrustRegion(TrustRegion):
    """First-order steps in the metric of Adam: s along -g / (sqrt(v) + epsilon), up to the radius.

    v is the bias-corrected running mean of squared gradients (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1).
    """

    model: str = "first_order"
    """No curvature pairs."""
    beta: float = 0.99
    """Decay of the squared gradients; shorter than Adam's 0.999, since there are only a few evaluations a batch."""
    epsilon: float = 1e-8
    """Added to the root."""

    def init(self, objective: Objective) -> State:
        """As the trust-region method, and the second moment (n,)."""
        state = super().init(objective)
        state |= {"second_moment": torch.zeros_like(state["parameters"]), "moments": 0}  # type: ignore[arg-type]
        return state

    def _propose(self, objective: Objective, state: State) -> Trial:
        gradient: Vector = state["gradient"]  # type: ignore[assignment]
        moment: Vector = state["second_moment"]  # type: ignore[assignment]
        state["moments"] = int(state["moments"]) + 1
        moment.mul_(self.beta).addcmul_(gradient, gradient, value=1 - self.beta)
        root = (moment / (1 - self.beta ** int(state["moments"]))).sqrt_().add_(self.epsilon)
        direction = gradient / root
        square, slope = objective.agree(objective.dot(direction, direction), objective.dot(direction, gradient))
        radius = float(state["radius"])
        part = radius / math.sqrt(square) if square > 0 else 0.0
        return Trial(direction.mul_(-part), radius, slope * part, 0, None)


def local_memory(solver: TrustRegion, objective: Objective) -> State:
    """What ``solver`` remembers between phases, still empty, under the names that ``solve_locally`` expects."""
    state = solver.init(objective)
    return {f"local_{key}": state[key] for key in (*MEMORY_KEYS, "gradient_scale") if key in state}


def solve_locally(
    solver: TrustRegion,
    problem: ConsistentObjective,
    memory: State,
    iterations: int,
    budget: float,
    first_radius: float,
) -> LocalStep:
    """At most ``iterations`` trials, none of which leaves the ball of radius ``budget`` around the anchor.

    Args:
        solver: makes the trials, and accepts or rejects them by F_d alone.
        problem: F_d.
        memory: of ``local_memory``, updated.
        iterations: most trials; each is one evaluation of this rank's samples.
        budget: bound of the displacement.
        first_radius: radius of the first trial; the solver changes it from there on, within the room that is left.
    """
    remembered = {key: memory[f"local_{key}"] for key in (*MEMORY_KEYS, "gradient_scale") if f"local_{key}" in memory}
    state = problem.start() | remembered | {"radius": first_radius}
    origin: Vector = state["parameters"].clone()  # type: ignore[union-attr]
    first_loss, step, norm, done = float(state["loss"]), torch.zeros_like(origin), 0.0, 0
    while done < iterations and budget - norm > SPENT * budget and float(state["gradient_square"]) > 0:
        wanted, room = float(state["radius"]), budget - norm
        cut = state["radius"] = min(wanted, room)
        state, report = solver.step(cast(Objective, problem), state, WHOLE)
        done += 1
        if float(state["radius"]) >= cut:
            state["radius"] = max(wanted, float(state["radius"]))
        if report.accepted:
            torch.sub(state["parameters"], origin, out=step)
            norm = math.sqrt(vectors.dot(step, step))
        elif report.stop.code != 0:
            break
    memory |= {f"local_{key}": state[key] for key in remembered}
    return LocalStep(step, norm, first_loss - float(state["loss"]), done)
