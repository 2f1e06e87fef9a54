"""Subsampled Gauss-Newton with conjugate gradients and Levenberg-Marquardt damping: a Hessian-free Newton method.

    (G + lambda P^-1) d = -g   by conjugate gradients;   d <- b1 d + b2 dbar;   w <- w + alpha d

G is the Gauss-Newton matrix on a subset of the batch, g the gradient on all of it, dbar the previous direction; b
minimises the model g^T s + 1/2 s^T G s over both directions, and alpha is found by halving. After C.-C. Wang et al.
2018 (Neural Computation 30(6), arXiv 1802.00130); letters follow it, and P = I there. By default P is built from
Kronecker factors of the curvature of each layer (``hpcopt.solvers.preconditioners.kronecker``), where every rank holds
the layers whole. lambda is a part of the linear system only: b and rho are of the model without it. Where the variables
are cut over the ranks, each rank can solve with its diagonal block of G alone instead, see
``hpcopt.solvers.block_direction``; combination and search are the same. Shapes: n parameters, k directions, 1 or 2.

Measured with P = I (``benchmarks/newton/combination.py``), 784-128-64-10, sigmoid, squared loss, 2,000 + 1,000 images
of mnist-5k, 15 incoming weights a unit, G on a fifth of the batch, 40 full batches, mean of two starts; f counts
|o - y|^2 once, products are those of conjugate gradients:

    cg_tolerance, combination      f        best test accuracy    products
    1e-3, without                  0.141    94.0 %                3,818
    1e-3                           0.128    93.7 %                1,344
    1e-2 (default)                 0.131    93.6 %                  841
    0.1                            0.156    93.7 %                  774

With lambda in the system for b too, the combination gains nothing: it takes as many products as without. On 784-128-10
ReLU with cross entropy and 4,000 images, G on 5, 10, 25 and 100 % of them ends at 1.5e-4, 1.6e-5, 1.9e-7 and 3e-10
after 60 steps at most, for 139, 148, 351 and 680 gradient equivalents: more samples are worth it where there are few.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch

from hpcopt.linalg.backtracking import backtrack
from hpcopt.linalg.conjugate_gradient import conjugate_gradients
from hpcopt.linalg.refinement import ROUNDING, refined
from hpcopt.linalg.two_directions import combination
from hpcopt.objective.protocol import Batch, Block, Linearization, Objective, Vector
from hpcopt.solvers.agreement import agreed_coefficients, agreed_dot, agreed_inner
from hpcopt.solvers.block_direction import BlockSolver
from hpcopt.solvers.checks import Needs, check_choice, check_count, check_effects, check_flag, check_number, fail
from hpcopt.solvers.damping import DAMPING_MAX, DAMPING_MIN, after_failure, after_step
from hpcopt.solvers.preconditioners.kronecker import KroneckerFactors, curvature_of
from hpcopt.solvers.preconditioners.protocol import Identity, Preconditioner
from hpcopt.solvers.solver import State, StepReport
from hpcopt.solvers.start import count_failure, empty_start, evaluate_start, noise
from hpcopt.solvers.trials import Trials


@dataclass(frozen=True)
class Direction:
    """A direction of search and what the model says of it.

    Attributes:
        vector: d.
        slope: g^T d.
        curvature: d^T G d.
        norm: |d|.
        iterations: of conjugate gradients; one number a rank where every rank solved for its own variables.
        finite: whether all of these are.
    """

    vector: Vector
    slope: float
    curvature: float
    norm: float
    iterations: tuple[int, ...]

    @property
    def finite(self) -> bool:
        """Whether slope, curvature and length are finite."""
        return all(map(math.isfinite, (self.slope, self.curvature, self.norm)))

    def predicted(self, step: float) -> float:
        """Decrease that the model promises for a step: -(alpha g^T d + alpha^2/2 d^T G d)."""
        return -(step * self.slope + 0.5 * step**2 * self.curvature)


@dataclass(frozen=True, kw_only=True)
class Newton:
    """Gauss-Newton with conjugate gradients; no learning rate, every step has sufficient decrease on its batch."""

    subset: float = 0.1
    """Part of the batch's samples in the Gauss-Newton matrix; another part in every step."""
    subset_least: int = 512
    """Fewest samples in it, as far as the batch has them: on fewer the directions are poor."""
    damping: float = 1.0
    """First lambda; later ones follow the ratio of actual to predicted decrease."""
    damping_increase: float = 1.5
    """Factor of lambda where the ratio is below 0.25, squared where no step was found ("boost")."""
    damping_decrease: float = 2 / 3
    """Factor of lambda where the ratio is above 0.75 ("drop")."""
    cg_tolerance: float = 0.01
    """Conjugate gradients end when |r| is this part of |g|."""
    cg_iterations: int = 250
    """Most iterations of conjugate gradients in a step, each one product with G, where P = I."""
    preconditioner: str = "auto"
    """P: "kronecker", from factors of the curvature of each layer, "none", P = I, or "auto": factors where every rank
    holds the layers whole and targets can be drawn for the loss, and the direction is "full"."""
    preconditioned_iterations: int = 1
    """Most iterations where P is not I. P g and the previous direction are combined by the model, which makes further
    iterations worth less than their products: they overrate what the subset says of directions it hardly determines."""
    factor_damping: float = 1e-3
    """What is added to the curvature before the factors of P are inverted."""
    combine: bool = True
    """Whether the step is the best combination of d with the previous direction."""
    direction: str = "full"
    """"full": (G + lambda I) d = -g over all variables. "block": every rank solves with its diagonal block of G alone,
    without communication; where the variables are cut over the ranks."""
    blocks: str = "rank"
    """With "block": one diagonal block a rank, over all its layers ("rank"), or one for each layer of it ("layer")."""
    block_solver: str = "auto"
    """With "block": "cg", "gram" (directly, by a factorisation of samples times outputs rows) or "auto": directly where
    that takes fewer operations than the iterations that conjugate gradients last needed, and fits into memory."""
    armijo: float = 1e-4
    """eta: the loss must fall by this part of what the slope promises."""
    backtracks: int = 25
    """Most halvings of the step."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            "subset": 0.05,
            "subset_least": 1,
            "damping": 1.0,
            "damping_increase": 1.5,
            "damping_decrease": 2 / 3,
            "cg_tolerance": 1e-3,
            "cg_iterations": 250,
            "preconditioner": "none",
            "combine": True,
            "armijo": 1e-4,
        }
    }

    NEEDS: ClassVar[Needs] = {
        "cg_tolerance": ({"direction": ("full",), "block_solver": ("auto", "cg")},),
        "cg_iterations": (
            {"direction": ("full",), "block_solver": ("auto", "cg")},
            {"preconditioner": ("auto", "none")},
        ),
        "preconditioned_iterations": ({"direction": ("full",)}, {"preconditioner": ("auto", "kronecker")}),
        "factor_damping": ({"direction": ("full",)}, {"preconditioner": ("auto", "kronecker")}),
        "blocks": ({"direction": ("block",)},),
        "block_solver": ({"direction": ("block",)},),
    }

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            UsageError: an option breaks its rule.
        """
        check_number(self, "subset", 0.0, 1.0, open_low=True)
        check_count(self, "subset_least")
        check_number(self, "damping", DAMPING_MIN, DAMPING_MAX)
        check_number(self, "damping_increase", 1.0)
        check_number(self, "damping_decrease", 0.0, 1.0, open_low=True)
        check_number(self, "cg_tolerance", 0.0, 1.0, open_high=True)
        check_count(self, "cg_iterations")
        check_choice(self, "preconditioner", ("auto", "kronecker", "none"))
        check_count(self, "preconditioned_iterations")
        check_number(self, "factor_damping", DAMPING_MIN, DAMPING_MAX)
        check_flag(self, "combine")
        check_choice(self, "direction", ("full", "block"))
        check_choice(self, "blocks", ("rank", "layer"))
        check_choice(self, "block_solver", ("auto", "cg", "gram"))
        if self.direction == "block" and self.preconditioner == "kronecker":
            fail(self, "preconditioner", 'has no effect with direction = "block"', 'Use "auto" or "none".')
        check_number(self, "armijo", 0.0, 0.5)
        check_count(self, "backtracks", 0)
        check_effects(self)

    @property
    def has_own_phase(self) -> bool:
        """Whether there is a phase in which the ranks iterate on their own."""
        return self.direction == "block" and self.block_solver != "gram"

    def subset_size(self, batch: int) -> int:
        """Most samples in the Gauss-Newton matrix for a batch of so many."""
        return min(max(self.subset_least, round(self.subset * batch)), batch)

    def init(self, objective: Objective) -> State:
        """Parameters, loss and gradient there once they are known, lambda, the previous direction, and counters."""
        state = empty_start(objective.initial_vector())
        previous = torch.zeros_like(state["parameters"])  # type: ignore[arg-type]
        if self.direction == "block":
            state["block_iterations"] = 0.0
        if self._wants_factors(objective):
            state |= KroneckerFactors().init(objective, cast(Vector, state["parameters"]))
        return state | {
            "damping": float(self.damping),
            "previous": previous,
            "has_previous": False,
            "subsets": 0,
            "failures": 0,
        }

    def _wants_factors(self, objective: Objective) -> bool:
        """Whether P is built from Kronecker factors."""
        if self.preconditioner == "auto" and self.direction == "full" and getattr(objective, "holds_layers", False):
            return curvature_of(objective).offers("true")
        return self.preconditioner == "kronecker"

    def step(self, objective: Objective, state: State, batch: Batch) -> tuple[State, StepReport]:
        """One step. *Collective*: a gradient, a product for each iteration of conjugate gradients, a few values."""
        preconditioner: Preconditioner = KroneckerFactors() if "factors" in state else Identity()
        pending = preconditioner.begin(objective, state, batch)
        report = evaluate_start(objective, state, batch)
        preconditioner.end(objective, state, pending, self.factor_damping)
        report.damping = float(state["damping"])
        if not report.gradient_norm > 0:
            return state, report
        direction = self._direction(objective, state, batch)
        report.inner_iterations, report.finite = sum(direction.iterations), direction.finite
        report.local_iterations = direction.iterations if self.direction == "block" else ()
        # Blocks that overlap in what they explain may add up to a step that is too long, not one of the wrong kind.
        too_long = self.direction == "full" and not direction.predicted(1.0) > 0
        if direction.finite and direction.slope < 0 and not too_long:
            self._search(objective, state, batch, direction, report)
        if not report.accepted:
            state["damping"] = after_failure(float(state["damping"]), self.damping_increase)
            count_failure(state, batch, report)
        report.damping = float(state["damping"])
        return state, report

    def _direction(self, objective: Objective, state: State, batch: Batch) -> Direction:
        """The direction of this step; the system is solved on the next subset of the batch."""
        samples = objective.subset(batch, self.subset_size(batch.total), int(state["subsets"]))
        state["subsets"] = int(state["subsets"]) + 1
        linear = objective.linearize(state["parameters"], samples)  # type: ignore[arg-type]
        if self.direction == "block":
            vector, iterations, finite = self._solve_blocks(state, linear.block)
        else:
            vector, iterations, finite = self._solve(objective, state, linear)
        # Where products have the rounding of stored factors, the model by which a step is judged has not.
        linear = getattr(linear, "exact", None) or linear
        if not finite:
            return Direction(vector, math.nan, math.nan, math.nan, iterations)
        return self._combined(objective, state, linear, vector, iterations)

    def _solve(self, objective: Objective, state: State, linear: Linearization) -> tuple[Vector, tuple[int, ...], bool]:
        """d, its iterations and whether it is finite."""
        factors, exact = "factors" in state, getattr(linear, "exact", None)
        solve = conjugate_gradients
        if exact is not None and self.cg_tolerance < ROUNDING:
            solve = partial(refined, exact=exact.gauss_newton)
        elif factors:
            solve = partial(solve, precondition=partial(KroneckerFactors().apply, state))
        solution = solve(
            linear.gauss_newton,
            gradient=state["gradient"],  # type: ignore[arg-type]
            damping=float(state["damping"]),
            inner=agreed_inner(objective),
            tolerance=self.cg_tolerance,
            most=self.preconditioned_iterations if factors else self.cg_iterations,
        )
        return solution.direction, (solution.iterations,), solution.finite

    def _solve_blocks(self, state: State, block: Block) -> tuple[Vector, tuple[int, ...], bool]:
        """d_p of this rank, the iterations of all ranks and whether they are finite."""
        solver = BlockSolver(self.blocks, self.block_solver, self.cg_tolerance, self.cg_iterations)
        gradient: Vector = state["gradient"]  # type: ignore[assignment]
        norm, before = math.sqrt(float(state["gradient_square"])), float(state["block_iterations"])
        found = solver.solve(block, gradient, norm, float(state["damping"]), before)
        state["block_iterations"] = found.expected(before)
        return found.direction, found.iterations, found.finite

    def _combined(
        self, objective: Objective, state: State, linear: Linearization, d: Vector, iterations: tuple[int, ...]
    ) -> Direction:
        """d, or its best combination with the previous direction, with all that the model says of it."""
        rows = [d, state["previous"]] if self.combine and state["has_previous"] else [d]
        directions = torch.stack(rows)  # type: ignore[arg-type]
        gradient: Vector = state["gradient"]  # type: ignore[assignment]
        slopes = agreed_inner(objective)(directions, gradient[None])[:, 0]
        curvatures = linear.curvatures(directions)
        if not bool(slopes.isfinite().all() and curvatures.isfinite().all()):
            return Direction(d, math.nan, math.nan, math.nan, iterations)
        best = combination(slopes, curvatures, d.dtype) if self.combine else torch.ones(1, dtype=torch.float64)
        (best, _) = agreed_coefficients(objective, best)
        vector = best.to(directions) @ directions
        square = agreed_dot(objective, vector, vector)
        slope, bend = float(best @ slopes), float(best @ curvatures @ best)
        return Direction(vector, slope, bend, math.sqrt(square), iterations)

    def _search(
        self, objective: Objective, state: State, batch: Batch, direction: Direction, report: StepReport
    ) -> None:
        """Halve the step until the loss falls; move there, and let lambda follow the ratio."""
        trials, parameters = Trials(objective, state, batch), cast(Vector, state["parameters"])

        def value(step: float) -> float:
            return trials.value(parameters.add(direction.vector, alpha=step), likely=step == 1.0)

        found = backtrack(value, report.loss, direction.slope, self.armijo, self.backtracks + 1)
        report.finite = found.finite
        if found.step == 0:
            return
        report.predicted, slack = direction.predicted(found.step), noise(state)
        gained, promised = report.loss - found.value + slack, report.predicted + slack
        report.accepted, report.rho = True, gained / promised if promised else math.nan
        report.loss_after, report.step_size, report.step_norm = found.value, found.step, found.step * direction.norm
        trials.move(parameters.add(direction.vector, alpha=found.step), found.value)
        foretold = (gained, promised) if promised > 0 else (0.0, 1.0)
        damping = after_step(float(state["damping"]), *foretold, self.damping_increase, self.damping_decrease)
        state |= {"damping": damping, "has_previous": True, "failures": 0}
        state["previous"].copy_(direction.vector)  # type: ignore[union-attr]
