"""Stochastic gradient descent with momentum: the baseline whose cost per step every other method is measured against.

    v <- momentum v + g;   w <- w - rate v            (Polyak; Sutskever et al. 2013 in the form of torch.optim.SGD)
    v <- momentum v + g;   w <- w - rate (g + momentum v)                                          (nesterov = true)

Weight decay belongs to the objective. Passes over the n numbers of w: one for the gradient norm, which doubles as the
check for numbers that are not finite, and one (plain), two (momentum) or three (Nesterov) for the update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hpcopt.objective.protocol import Batch, Objective
from hpcopt.solvers.checks import ABOVE_0, Needs, check_effects, check_flag, check_number
from hpcopt.solvers.first_order import evaluate
from hpcopt.solvers.schedules import ScheduledRate
from hpcopt.solvers.solver import State, StepReport


@dataclass(frozen=True, kw_only=True)
class SGD(ScheduledRate):
    """w <- w - rate * gradient, with momentum; the same numbers as ``torch.optim.SGD`` with dampening 0."""

    NEEDS: ClassVar[Needs] = {**ScheduledRate.NEEDS, "nesterov": ({"momentum": ABOVE_0},)}

    momentum: float = 0.0
    """Share of the last update that is kept, from 0 to below 1."""
    nesterov: bool = False
    """Look ahead by the momentum; needs momentum above 0."""

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            UsageError: an option breaks its rule.
        """
        super().__post_init__()
        check_number(self, "momentum", 0.0, 1.0, open_high=True)
        check_flag(self, "nesterov")
        check_effects(self)

    def init(self, objective: Objective) -> State:
        """Parameters, and the velocity (n,) of zeros where there is momentum."""
        parameters = objective.initial_vector()
        state: State = {"parameters": parameters}
        if self.momentum:
            state["velocity"] = torch.zeros_like(parameters)
        return state

    def step(self, objective: Objective, state: State, batch: Batch) -> tuple[State, StepReport]:
        """One update. *Collective*, one reduction. A loss or gradient that is not finite leaves the state untouched."""
        parameters: torch.Tensor = state["parameters"]  # type: ignore[assignment]
        rate = self.rate(batch.position)
        gradient, report = evaluate(objective, state, batch, rate)
        if not report.finite:
            return state, report
        if self.momentum:
            parameters.add_(self._direction(state, gradient), alpha=-rate)
        else:
            report.step_norm = rate * report.gradient_norm
            parameters.add_(gradient, alpha=-rate)
        objective.release(gradient)
        return state, report

    def _direction(self, state: State, gradient: torch.Tensor) -> torch.Tensor:
        velocity: torch.Tensor = state["velocity"]  # type: ignore[assignment]
        torch.add(gradient, velocity, alpha=self.momentum, out=velocity)
        return gradient.add_(velocity, alpha=self.momentum) if self.nesterov else velocity
