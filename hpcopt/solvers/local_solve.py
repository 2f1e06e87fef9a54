"""The local phase of APTS: every rank minimises its own objective, corrected to first order, without communication.

    F_d(x) = f_d(x) + (g - g_d)^T (x - w),   g = grad f(w),   g_d = grad f_d(w)

so that grad F_d(w) = g on every rank (additively preconditioned trust-region strategy: Gross and Krause 2009; Cruz
Alegria, Trotti, Kopanicakova and Krause 2025, arXiv 2502.05133). The correction is linear: it drops out of the gradient
changes, so curvature pairs are of this rank's samples alone and stay good from one phase to the next.
When ranks vary different blocks of the variables, x, g and g_d are this rank's block, all others stay at w; ranks with
the same samples then have g_d = g where there are no other samples, and the correction is 0.
Shapes: n parameters, of which this rank may change m.
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
from hpcopt.solvers.trust_region import TrustRegion

SPENT = 1e-4
"""The phase ends when less than this part of the budget is left."""

MEMORY_KEYS = (
    "pairs",
    "gram",
    "pairs_stored",
    "pairs_free",
    "second_moment",
    "moments",
    "loss_scale",
    "gradient_scale",
)
"""What a local solver keeps from phase to phase."""


@dataclass(frozen=True)
class Anchor:
    """Where a phase begins, at w, and what is known there: of all ranks, and of this rank's group alone.

    Vectors (m,) are of the variables that this rank may change. ``square`` is the squared norm of ``gradient``.
    """

    point: Vector
    gradient: Vector
    square: float
    own_loss: float
    own_gradient: Vector


@dataclass(frozen=True)
class LocalStep:
    """What a phase came to: the displacement (m,), its 2-norm, the decrease of F_d, and the trials it took."""

    step: Vector
    norm: float
    decrease: float
    iterations: int


class ConsistentObjective(vectors.OwnVectors):
    """F_d: the group's objective with the linear term that gives it the gradient of all ranks at the anchor.

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
        """F_d(x) and its gradient (m,)."""
        loss, gradient = self._local.value_and_gradient(x, self._batch)
        if self._residual is None:
            return loss, gradient
        if self._consistency == "full":
            gradient.add_(self._residual)
        return loss + vectors.dot(self._residual, x - self._anchor.point), gradient

    def goes_on(self, done: int) -> bool:
        """Whether another trial may follow ``done`` of them."""
        return done == 0 or self._local.goes_on(done)


def local_memory(solver: TrustRegion, objective: Objective) -> State:
    """What ``solver`` remembers of this rank's variables between phases: nothing yet."""
    state = solver.start(objective.local.take(objective.initial_vector()))
    return {f"local_{key}": state[key] for key in MEMORY_KEYS if key in state}


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
    remembered = {key: memory[f"local_{key}"] for key in MEMORY_KEYS if f"local_{key}" in memory}
    state = problem.start() | remembered | {"radius": first_radius}
    origin: Vector = state["parameters"].clone()  # type: ignore[union-attr]
    first_loss, step, norm, done = float(state["loss"]), torch.zeros_like(origin), 0.0, 0
    while done < iterations and problem.goes_on(done):
        if budget - norm <= SPENT * budget or state["gradient_square"] == 0:
            break
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


@dataclass(frozen=True)
class Combined:
    """What the local phases of all ranks came to: the same on all ranks.

    Attributes:
        step: sum of the ranks' weighted displacements (n,).
        decrease: sum of their weighted decreases.
        reach: how much of the radius they used: the largest over the blocks of variables of the weighted norms' sum.
        iterations: trials of each rank.
    """

    step: Vector
    decrease: float
    reach: float
    iterations: tuple[int, ...]


@dataclass(frozen=True)
class LocalPhase:
    """The local phase as the options of APTS describe it; see there for their meaning."""

    solver: TrustRegion
    iterations: int
    consistency: str
    combination: str
    budget: float | None
    """Bound of a rank's displacement; None for the radius."""
    start: float

    def run(self, objective: Objective, state: State, batch: Batch) -> Combined:
        """Solve on every rank and add up. *Collective*, one reduction of n numbers at the end."""
        share, local = objective.share(batch), objective.local
        local.begin(cast(Vector, state["parameters"]))
        found = self._solve(objective, state, batch, share)
        local.end()
        weight = share if self.combination == "mean" else 1.0
        step, (decrease,), told = objective.combine(
            local.put(found.step * weight), (weight * found.decrease,), (weight * found.norm, found.iterations)
        )
        reaches = torch.zeros(max(objective.blocks) + 1, dtype=torch.float64)
        reaches.index_add_(0, torch.tensor(objective.blocks), told[:, 0].to(torch.float64))
        return Combined(step, decrease, float(reaches.max()), tuple(int(count) for count in told[:, 1]))

    def _solve(self, objective: Objective, state: State, batch: Batch, share: float) -> LocalStep:
        """This rank's part. A rank without samples in the batch has no curvature to add and stays at w."""
        anchor = self._anchor(objective, state)
        if share == 0:
            return LocalStep(torch.zeros_like(anchor.point), 0.0, 0.0, 0)
        radius = float(state["step_radius"]) * (share if self.combination == "sum" else 1.0)
        problem = ConsistentObjective(objective.local, batch, anchor, self.consistency)
        budget = radius if self.budget is None else self.budget
        return solve_locally(self.solver, problem, state, self.iterations, budget, self.start * radius)

    def _anchor(self, objective: Objective, state: State) -> Anchor:
        take, square = objective.local.take, float(state["gradient_square"])
        gradient = take(cast(Vector, state["gradient"]))
        if len(gradient) < objective.size:
            square = vectors.dot(gradient, gradient)
        own_gradient = take(cast(Vector, state["own_gradient"]))
        return Anchor(take(cast(Vector, state["parameters"])), gradient, square, float(state["own_loss"]), own_gradient)
