"""The interface of preconditioners: P, an estimate of the inverse of the curvature, which turns a gradient into a step.

Like a solver, a preconditioner is an immutable bundle of options; what changes from step to step lies in the solver's
state, under names of its own. Its calls in one step, in this order:

    pending = begin(...)      before the gradient: what takes long is started
    ...                       the gradient, while reductions that were started are under way
    end(..., pending, ...)    what was started is done; P is ready
    z = apply(...)            as often as wanted
    observe(...)              after the step, where ``wants_pairs``: displacement and change of the gradient

Shapes: n parameters of this rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from hpcopt.objective.protocol import Batch, Objective, Vector
from hpcopt.solvers.solver import State


class Preconditioner(Protocol):
    """P, symmetric and positive definite. Implementations are frozen dataclasses, as solvers are.

    Attributes:
        wants_pairs: whether ``observe`` must be called, which costs a second gradient on the same batch.
    """

    wants_pairs: ClassVar[bool]

    def init(self, objective: Objective, parameters: Vector) -> State:
        """The entries of the solver's state that belong to P, before the first step. *Collective*."""
        ...

    def begin(self, objective: Objective, state: State, batch: Batch) -> Any:
        """Start what P needs at ``state["parameters"]``, without waiting for it. *Collective*.

        Returns:
            What ``end`` needs; None where nothing was started.
        """
        ...

    def end(self, objective: Objective, state: State, pending: Any, damping: float) -> None:
        """Make P ready from what ``begin`` gave. *Collective*.

        Args:
            objective: as in ``begin``.
            state: the solver's.
            pending: what ``begin`` gave.
            damping: what is added to the curvature before it is inverted, where P has a use for it.
        """
        ...

    def apply(self, state: State, vector: Vector) -> Vector:
        """P r, a new vector (n,). No communication."""
        ...

    def observe(self, objective: Objective, state: State, step: Vector, change: Vector) -> None:
        """A pair (n,), (n,): how far w moved and how the gradient on one batch changed. *Collective*."""
        ...

    def restart(self, objective: Objective, state: State) -> None:
        """Forget the past."""
        ...


@dataclass(frozen=True, kw_only=True)
class Identity:
    """P = I: no preconditioner."""

    wants_pairs: ClassVar[bool] = False

    def init(self, objective: Objective, parameters: Vector) -> State:
        """Nothing."""
        return {}

    def begin(self, objective: Objective, state: State, batch: Batch) -> None:
        """Nothing."""

    def end(self, objective: Objective, state: State, pending: Any, damping: float) -> None:
        """Nothing."""

    def apply(self, state: State, vector: Vector) -> Vector:
        """A copy."""
        return vector.clone()

    def observe(self, objective: Objective, state: State, step: Vector, change: Vector) -> None:
        """Nothing."""

    def restart(self, objective: Objective, state: State) -> None:
        """Nothing."""
