"""APTS, the additively preconditioned trust-region strategy, with the samples divided among the ranks.

One iteration on a batch of B samples, of which rank d holds B_d; w_d = B_d / B, f = sum_d w_d f_d:

    f, g      value and gradient at w                                                  one reduction, if not known
    s_d       nu trials of a trust-region method on f_d(x) + (g - g_d)^T (x - w) from w,
              within the ball of radius Delta                                          no communication
    s, p      sum_d w_d s_d,  sum_d w_d (decrease of rank d's objective)               one reduction
    rho       (f(w) - f(w + s)) / p;  accept w + s when rho >= accept                  one reduction, with its gradient
    mu trials of a trust-region method on f from there, with a radius of its own       one reduction each

(Gross and Krause 2009; Cruz Alegria, Trotti, Kopanicakova and Krause 2025, arXiv 2502.05133, from whose published code
the preset "paper" takes constants and coupling.) What differs by default, each because the published choice loses
quality with the number of ranks: the correction g - g_d is in the gradient and not only in the loss, no rank moves
farther than Delta, steps and decreases are averaged instead of summed, and curvature is modelled in the local solves.

On mini-batches all ratios on the batch itself look good long after the steps have begun to fit the batch rather than
the problem. So the radius follows the next batch, B': (f_B'(w before) - f_B'(w after)) / (what the iteration promised),
at the cost of one value (the control batch of Krejic et al. 2024, COAP 89, at a third of a gradient).
Shapes: n parameters, m pairs at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

import torch

from hpcopt.objective.protocol import Batch, Objective, Vector
from hpcopt.solvers.adam_metric import AdamTrustRegion
from hpcopt.solvers.agreement import agreed_dot
from hpcopt.solvers.averaging import empty_average, take_into_average
from hpcopt.solvers.checks import (
    ABOVE_0,
    Needs,
    check_choice,
    check_count,
    check_effects,
    check_flag,
    check_number,
    fail,
)
from hpcopt.solvers.fixed_batch import WHOLE, FixedBatch
from hpcopt.solvers.local_solve import LocalPhase, local_memory
from hpcopt.solvers.solver import State, StepReport, StopReason
from hpcopt.solvers.start import evaluate_start, first_length, is_stationary, move, noise
from hpcopt.solvers.trust_region import NEAR_BOUNDARY, NOT_FINITE_SHRINK, Trial, TrustRegion, check_radii

MODELS = ("lbfgs", "lsr1", "first_order", "adam")


@dataclass(frozen=True, kw_only=True)
class APTS:
    """Local trust-region solves on every rank's samples as the preconditioner of a global trust-region method."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            "combination": "sum",
            "consistency": "loss",
            "budget": False,
            "local_solver": "first_order",
            "local_start": 1.0,
            "global_solver": "first_order",
            "shared_radius": True,
            "radius_control": "batch",
            "radius_initial": 1.0,
            "radius_min": 1e-3,
            "radius_max": 4.0,
            "accept": 0.25,
            "average": 0.0,
        }
    }
    """Constants of the published code (its later default of 1.0 for the first radius)."""

    NEEDS: ClassVar[Needs] = {
        "local_memory": ({"local_solver": ("lbfgs", "lsr1")},),
        "global_memory": ({"global_solver": ("lbfgs", "lsr1")},),
        "shared_radius": ({"global_iterations": ABOVE_0},),
        "next_shrink_below": ({"radius_control": ("next_batch",)},),
        "next_grow_above": ({"radius_control": ("next_batch",)},),
        "next_grow": ({"radius_control": ("next_batch",)},),
    }

    OWN_STATE: ClassVar[tuple[str, ...]] = ("local_", "own_")

    combination: str = "mean"
    """"mean": every rank may move by the radius, steps and decreases are averaged by samples. "sum": rank d may move by
    w_d times the radius (1 / ranks for equal shards), steps and decreases are added."""
    consistency: str = "full"
    """Correction of the local objectives to first order: in loss and gradient ("full"), in the loss only ("loss") or
    nowhere ("none")."""
    budget: bool = True
    """Whether a rank's displacement is bounded by its radius; else by ``radius_max`` alone."""
    local_solver: str = "lbfgs"
    """Model of the local trials: "lbfgs", "lsr1", "first_order" or "adam" (first order in Adam's diagonal metric)."""
    local_iterations: int = 5
    """nu: trials of a rank between reductions; each evaluates the rank's samples once."""
    local_memory: int = 8
    """Pairs (step, gradient change) of a rank's own samples; each costs two vectors of n numbers."""
    local_start: float = 0.3
    """First local radius as a part of the budget; it changes with every trial. At 1 the first trial spends the budget
    wherever the radius binds, and no curvature is met on the way: on MNIST that costs half a point of test accuracy
    after 1 and 2 epochs and nothing after 10, for 15 % less work (one seed, 2 and 8 ranks)."""
    global_solver: str = "lbfgs"
    """Model of the global trials, from the same four."""
    global_iterations: int = 1
    """mu: trials of the global pass after the preconditioned step; 0 leaves it out."""
    global_memory: int = 8
    """Pairs of the global pass: of the preconditioned steps and of its own trials."""
    shared_radius: bool = False
    """Whether preconditioned steps and global pass share one radius, which then both change."""
    radius_initial: float | None = None
    """First radius. Default: |f| / |g|, the step at which the linear model of the loss is 0, but at most |w|."""
    radius_min: float = 1e-10
    """The radius never falls below this (or below the rounding of w)."""
    radius_max: float = 1e6
    """The radius never grows beyond this."""
    window: int = 1
    """A preconditioned step is judged against the highest loss at the start of the last ``window`` iterations, this one
    included (non-monotone, NAPTS). 1: against the loss where it starts. On mini-batches those are losses of other
    batches."""
    average: float = 0.25
    """On mini-batches the point that is evaluated and delivered is a running mean over about this part of all iterates
    so far, the latest (polynomial-decay averaging, Shamir and Zhang 2013, ICML); 0 delivers the iterate itself. Trials
    always start from the iterate."""
    radius_control: str = "next_batch"
    """What the radius follows on mini-batches: the loss of the next batch ("next_batch") or, as on full batches, of the
    batch itself ("batch")."""
    next_shrink_below: float = -0.5
    """The radius shrinks when the next batch gains less than this part of what the iteration promised; below 0: when it
    loses more. The mean of the iterates settles the noise of smaller losses, and radii that stay large do better."""
    next_grow_above: float = 0.3
    """The radius grows when the next batch gains more than this part of what the iteration promised, and the ranks used
    most of it."""
    next_grow: float = 1.5
    """Factor of the radius when it grows by the next batch."""
    accept: float = 0.1
    """A step is accepted when the loss falls by at least this part of the predicted decrease."""
    shrink_below: float = 0.25
    """The radius shrinks when actual over predicted decrease is below this."""
    grow_above: float = 0.75
    """The radius grows when actual over predicted decrease is above this and the ranks used most of it."""
    shrink: float = 0.5
    """New radius over old one (or over the length of the step) when it shrinks."""
    grow: float = 2.0
    """New radius over old one when it grows by the batch itself."""

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            UsageError: an option breaks its rule.
        """
        check_choice(self, "combination", ("mean", "sum"))
        check_choice(self, "consistency", ("full", "loss", "none"))
        check_choice(self, "local_solver", MODELS)
        check_choice(self, "global_solver", MODELS)
        check_choice(self, "radius_control", ("next_batch", "batch"))
        check_flag(self, "budget")
        check_flag(self, "shared_radius")
        for key in ("local_iterations", "local_memory", "global_memory", "window"):
            check_count(self, key)
        check_count(self, "global_iterations", 0)
        check_number(self, "local_start", 0.0, 1.0, open_low=True)
        check_number(self, "average", 0.0, 1.0)
        check_number(self, "next_shrink_below", high=1.0)
        check_number(self, "next_grow_above")
        check_number(self, "next_grow", 1.0, open_low=True)
        if self.next_shrink_below > self.next_grow_above:
            fail(self, "next_shrink_below", f"must be at most next_grow_above = {self.next_grow_above:g}")
        check_radii(self)
        check_effects(self)
        _ = self._local_phase, self._global  # once, not in every step

    def init(self, objective: Objective) -> State:
        """The state of the global pass, the radius of the preconditioned step, this rank's own part and its memory.

        Entries ``local_*`` and ``own_*`` are this rank's own; all others are the same on all ranks.
        """
        state = self._global.init(objective)
        parameters: Vector = state["parameters"]  # type: ignore[assignment]
        own: State = {"own_loss": 0.0, "own_gradient": torch.zeros_like(parameters)}
        last: State = {"step_radius": 0.0, "previous": parameters.clone(), "promised": 0.0, "reach": 0.0}
        last["window"] = torch.full((self.window,), -math.inf, dtype=torch.float64)
        if self.average:
            last |= empty_average(parameters)
        return state | own | last | local_memory(self._local_phase.solver, objective)

    def step(self, objective: Objective, state: State, batch: Batch) -> tuple[State, StepReport]:
        """One iteration. *Collective*: 2 + mu reductions of n numbers on a full batch, 3 + mu on a mini-batch."""
        report = evaluate_start(objective, state, batch, own=True)
        report.radius = float(state["step_radius"])
        if not report.gradient_norm > 0:
            return state, report
        if state["step_radius"] == 0:
            self._choose_radii(objective, state)
        self._look_back(objective, state, batch)
        state["previous"].copy_(state["parameters"])  # type: ignore[union-attr, arg-type]
        window = cast(Vector, state["window"]).roll(1)
        window[0] = report.loss
        state["window"] = window
        fixed = FixedBatch(objective, batch)
        state["promised"] = self._precondition(objective, state, batch, fixed, report)
        stop = self._global_pass(state, batch, fixed, report)
        self._finish(objective, state, batch, report, stop)
        return state, report

    @cached_property
    def _local_phase(self) -> LocalPhase:
        # The radius of its solver is set anew in every phase.
        solver = _trust_region(self.local_solver, self.local_memory)
        budget = None if self.budget else self.radius_max
        return LocalPhase(solver, self.local_iterations, self.consistency, self.combination, budget, self.local_start)

    @cached_property
    def _global(self) -> TrustRegion:
        """The solver of the global pass."""
        names = ("radius_initial", "radius_min", "radius_max", "accept", "shrink_below", "grow_above", "shrink", "grow")
        shared = {name: getattr(self, name) for name in names}
        return _trust_region(self.global_solver, self.global_memory, **shared)

    def _choose_radii(self, objective: Objective, state: State) -> None:
        radius = self.radius_initial or first_length(objective, state)
        state["step_radius"] = state["radius"] = min(max(radius, self.radius_min), self.radius_max)

    def _look_back(self, objective: Objective, state: State, batch: Batch) -> None:
        """Correct the radius by what the last iteration gained on this batch, which it has not seen (*collective*)."""
        if batch.indices is None or self.radius_control != "next_batch" or not state["promised"]:
            return
        before = objective.value(state["previous"], batch)  # type: ignore[arg-type]
        gained, promised = before - float(state["loss"]), float(state["promised"])
        radius, reach = float(state["step_radius"]), float(state["reach"])
        if gained < self.next_shrink_below * promised:
            state["step_radius"] = max(self.shrink * min(radius, reach), self.radius_min)
        elif gained > self.next_grow_above * promised and reach >= NEAR_BOUNDARY * radius:
            state["step_radius"] = min(self.next_grow * radius, self.radius_max)
        # Left alone, the global pass would undo it: its ratio on the batch itself is always good.
        state["radius"] = min(float(state["radius"]), float(state["step_radius"]))

    def _precondition(
        self, objective: Objective, state: State, batch: Batch, fixed: FixedBatch, report: StepReport
    ) -> float:
        """Local solves, their combination and its ratio test; returns the predicted decrease of an accepted step."""
        found = self._local_phase.run(objective, state, batch)
        step, decrease, reach = found.step, found.decrease, found.reach
        norm = math.sqrt(agreed_dot(objective, step, step))
        report.predicted, state["reach"] = decrease, reach
        report.local_iterations, report.inner_iterations = found.iterations, sum(found.iterations)
        report.finite = math.isfinite(norm + decrease + reach)
        if not report.finite or decrease <= 0:
            state["step_radius"] = float(state["step_radius"]) * (self.shrink if report.finite else NOT_FINITE_SHRINK)
            return 0.0
        point = state["parameters"] + step
        after, gradient = fixed.value_and_gradient(point)
        square = agreed_dot(objective, gradient, gradient)
        if not (math.isfinite(after) and math.isfinite(square)):
            report.finite, state["step_radius"] = False, NOT_FINITE_SHRINK * min(reach, float(state["step_radius"]))
            return 0.0
        self._judge(state, batch, after, report)
        self._global._learn(objective, state, Trial(step, norm, decrease, 0, None), gradient)
        if not report.accepted:
            return 0.0
        self._move(state, batch, fixed, (point, after, gradient, square))
        return decrease

    def _judge(self, state: State, batch: Batch, after: float, report: StepReport) -> None:
        """Accept or reject the preconditioned step, and its radius. Nothing is divided by a decrease that may be 0."""
        slack, radius, reach = noise(state), float(state["step_radius"]), float(state["reach"])
        actual = float(cast(Vector, state["window"]).max()) - after
        gained, promised = actual + slack, report.predicted + slack
        report.rho = gained / promised
        report.accepted = actual > 0 and gained >= self.accept * promised
        by_batch = batch.indices is None or self.radius_control == "batch"
        if not report.accepted or (by_batch and gained < self.shrink_below * promised):
            state["step_radius"] = self.shrink * min(reach, radius)
        elif by_batch and gained > self.grow_above * promised and reach >= NEAR_BOUNDARY * radius:
            state["step_radius"] = min(self.grow * radius, self.radius_max)

    def _move(self, state: State, batch: Batch, fixed: FixedBatch, trial: tuple[Vector, float, Vector, float]) -> None:
        move(state, batch, *trial)
        if fixed.own is not None:
            state["own_loss"], state["own_gradient"] = fixed.own

    def _global_pass(self, state: State, batch: Batch, fixed: FixedBatch, report: StepReport) -> StopReason:
        """At most mu trials on the loss of all ranks from where the preconditioned step ended. *Collective*."""
        solver, stop = self._global, StopReason.RUNNING
        if self.shared_radius:
            state["radius"] = state["step_radius"]
        for _ in range(self.global_iterations):
            if state["gradient_square"] == 0 or stop is not StopReason.RUNNING:
                break
            state["known"] = True
            _, trial = solver.step(cast(Objective, fixed), state, WHOLE)
            report.finite, stop = report.finite and trial.finite, trial.stop
            if trial.accepted:
                report.accepted = True
                state["promised"] = float(state["promised"]) + trial.predicted
                if fixed.own is not None:
                    state["own_loss"], state["own_gradient"] = fixed.own
        state |= {"known": batch.indices is None, "key_epoch": batch.key[0], "key_number": batch.key[1]}
        if self.shared_radius:
            state["step_radius"] = state["radius"]
        return stop

    def _finish(self, objective: Objective, state: State, batch: Batch, report: StepReport, stop: StopReason) -> None:
        """What the report says of the whole iteration, the floor of the radius, and the end of a full-batch run."""
        parameters: Vector = state["parameters"]  # type: ignore[assignment]
        if self.average:
            take_into_average(state, batch, self.average)
        moved = parameters - state["previous"]
        square, size = objective.agree(objective.dot(moved, moved), objective.dot(parameters, parameters))
        report.step_norm, report.loss_after = math.sqrt(square), float(state["loss"])
        smallest = max(self.radius_min, torch.finfo(parameters.dtype).eps * math.sqrt(size))
        spent = float(state["step_radius"]) <= smallest
        state["step_radius"] = max(float(state["step_radius"]), smallest)
        report.radius = float(state["step_radius"])
        if report.accepted or batch.indices is not None:
            return
        if spent and (stop is not StopReason.RUNNING or not self.global_iterations):
            report.stop = StopReason.GRADIENT_SMALL if is_stationary(state) else StopReason.RADIUS_SMALL


def _trust_region(model: str, memory: int, **options: Any) -> TrustRegion:
    """The trust-region method with one of ``MODELS``."""
    if model == "adam":
        return AdamTrustRegion(**options)
    return TrustRegion(model=model, **options, **({} if model == "first_order" else {"memory": memory}))
