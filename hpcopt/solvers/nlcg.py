"""NLCG, preconditioned nonlinear conjugate gradients for very large batches: options and the choice of step rule.

The direction is -P g plus a part of the previous one, after Adya, Palakkode and Tuzel 2018 (arXiv 1812.02886). By
default step and beta are chosen together on the Gauss-Newton model, see ``hpcopt.solvers.conjugate.plane``, and P is
built from Kronecker factors.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, cast

from hpcopt.objective.protocol import Batch, Objective
from hpcopt.solvers.checks import Needs, check_choice, check_count, check_effects, check_number, fail
from hpcopt.solvers.conjugate.options import PAPER, ConjugateOptions
from hpcopt.solvers.damping import DAMPING_MAX, DAMPING_MIN
from hpcopt.solvers.preconditioners.protocol import Preconditioner
from hpcopt.solvers.solver import Solver, State, StepReport

PRECONDITIONERS: dict[str, str] = {
    "diagonal_bfgs": "hpcopt.solvers.preconditioners.diagonal_bfgs:DiagonalBFGS",
    "gauss_newton_diagonal": "hpcopt.solvers.preconditioners.gauss_newton_diagonal:GaussNewtonDiagonal",
    "identity": "hpcopt.solvers.preconditioners.protocol:Identity",
    "kronecker": "hpcopt.solvers.preconditioners.kronecker:KroneckerFactors",
    "released_diagonal_bfgs": "hpcopt.solvers.preconditioners.diagonal_bfgs:ReleasedDiagonalBFGS",
}
"""Value of ``preconditioner`` -> "module:Class". The class gets those options whose names are its own."""

STEP_RULES: dict[str, str] = {
    "control": "hpcopt.solvers.conjugate.controlled:ControlledDirections",
    "hager_zhang": "hpcopt.solvers.conjugate.searched:ConjugateDirections",
    "plane": "hpcopt.solvers.conjugate.plane:PlaneSearch",
    "strong_wolfe": "hpcopt.solvers.conjugate.searched:ConjugateDirections",
}
"""Value of ``step_rule`` -> "module:Class", made from the options and the preconditioner; ``init`` and ``step``."""

IN_PLANE = {"step_rule": ("plane",)}
BY_NEXT_BATCH = {"damping_control": ("next_batch",)}


@dataclass(frozen=True, kw_only=True)
class NLCG(ConjugateOptions):
    """Conjugate gradients in the metric of a preconditioner; by default nothing is to be chosen."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"paper": PAPER}

    NEEDS: ClassVar[Needs] = {
        **ConjugateOptions.NEEDS,
        **{
            name: ({"preconditioner": ("kronecker",)},)
            for name in ("fisher", "factor_samples", "factor_every", "factor_memory")
        },
        **{
            name: (IN_PLANE,)
            for name in ("subset", "subset_least", "damping_increase", "damping_decrease", "damping_control")
        },
        **{name: (IN_PLANE, BY_NEXT_BATCH) for name in ("next_increase_below", "next_decrease_above")},
        "damping": (IN_PLANE | {"preconditioner": ("kronecker", "gauss_newton_diagonal")},),
        "average": ({"step_rule": ("plane", "strong_wolfe", "hager_zhang")},),
    }

    step_rule: str = "plane"
    """How step and beta are found. "plane": together, the minimiser of the Gauss-Newton model in the plane of the
    preconditioned gradient and the previous step. "strong_wolfe", "hager_zhang": beta by ``beta``, and a line search.
    "control": beta by ``beta``, and a scheduled step length that follows the loss."""
    preconditioner: str = "kronecker"
    """P: "kronecker", from Kronecker factors of the curvature of each layer, "diagonal_bfgs", "gauss_newton_diagonal"
    or "identity"; with "control" also "released_diagonal_bfgs"."""
    fisher: str = "true"
    """With "kronecker", the curvature: "true" for the Gauss-Newton matrix, by targets drawn from the model, or
    "empirical", the second moments of the samples' gradients."""
    factor_samples: int = 2000
    """With "kronecker", samples of the batch for the factors; others each time."""
    factor_every: int = 5
    """With "kronecker", iterations from one refresh of the factors to the next; the first so many have one each."""
    factor_memory: float = 0.9
    """With "kronecker", most weight of the past in the moving average of the factors."""
    subset: float = 0.25
    """Part of the batch's samples whose curvature is taken in the plane; another part in every step."""
    subset_least: int = 2000
    """Fewest samples in it, as far as the batch has them."""
    damping: float = 0.01
    """First lambda, which is added to the curvature in the preconditioner and in the plane."""
    damping_increase: float = 1.5
    """Factor of lambda where the next batch gains too little; squared where the batch itself does."""
    damping_decrease: float = 2 / 3
    """Factor of lambda where the step gained about what was promised."""
    damping_control: str = "next_batch"
    """What lambda follows on mini-batches: the loss of the next batch ("next_batch") or, as on full batches, of the
    batch itself ("batch")."""
    next_increase_below: float = -0.5
    """lambda grows when the next batch gains less than this part of what the step promised; below 0: loses more. At the
    noise floor a batch gains little from any step for another one, and with 0.25 lambda grew without end there. The
    mean of the iterates settles that noise."""
    next_decrease_above: float = 0.5
    """lambda falls when the next batch gains more than this part of what the step promised."""
    average: float = 0.25
    """On mini-batches the point that is evaluated and delivered is a running mean over about this part of all iterates
    so far, the latest; 0 delivers the iterate itself."""

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            UsageError: an option breaks its rule.
        """
        super().__post_init__()
        check_choice(self, "step_rule", tuple(STEP_RULES))
        check_choice(self, "preconditioner", tuple(PRECONDITIONERS))
        if self.preconditioner == "released_diagonal_bfgs" and self.step_rule != "control":
            fail(self, "preconditioner", 'needs step_rule = "control"', 'Use "diagonal_bfgs", or that step rule.')
        check_number(self, "subset", 0.0, 1.0, open_low=True)
        check_count(self, "subset_least")
        check_number(self, "damping", DAMPING_MIN, DAMPING_MAX)
        check_number(self, "damping_increase", 1.0)
        check_number(self, "damping_decrease", 0.0, 1.0, open_low=True)
        check_choice(self, "damping_control", ("next_batch", "batch"))
        check_number(self, "next_increase_below", high=1.0)
        check_number(self, "next_decrease_above")
        if self.next_increase_below > self.next_decrease_above:
            fail(self, "next_increase_below", f"must be at most next_decrease_above = {self.next_decrease_above:g}")
        check_number(self, "average", 0.0, 1.0)
        check_effects(self)
        _ = self._rule  # what the preconditioner checks of its own options

    def init(self, objective: Objective) -> State:
        """As the step rule has it."""
        return self._rule.init(objective)

    def step(self, objective: Objective, state: State, batch: Batch) -> tuple[State, StepReport]:
        """One step, as the step rule has it. *Collective*."""
        return self._rule.step(objective, state, batch)

    @cached_property
    def _rule(self) -> Solver:
        return cast(Solver, _imported(STEP_RULES[self.step_rule])(self, self._preconditioner()))

    def _preconditioner(self) -> Preconditioner:
        """P, with those of these options that have the names of its own."""
        cls = _imported(PRECONDITIONERS[self.preconditioner])
        own = {field.name for field in fields(cls)} & {field.name for field in fields(self)}
        return cast(Preconditioner, cls(**{name: getattr(self, name) for name in own}))


def _imported(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
