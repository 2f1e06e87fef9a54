"""Adam, and AdamW by its decoupled weight decay.

    m <- beta1 m + (1 - beta1) g;   v <- beta2 v + (1 - beta2) g^2;   w <- w - rate m^ / (sqrt(v^) + epsilon)

with m^ = m / (1 - beta1^t), v^ = v / (1 - beta2^t) (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1); decoupled decay
first shrinks w by rate * decay (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2, in the form of torch).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hpcopt.objective.protocol import Batch, Objective
from hpcopt.solvers.checks import check_number, fail
from hpcopt.solvers.first_order import evaluate
from hpcopt.solvers.schedules import ScheduledRate
from hpcopt.solvers.solver import State, StepReport


@dataclass(frozen=True, kw_only=True)
class Adam(ScheduledRate):
    """Gradient descent scaled by running moments; the numbers of ``torch.optim.Adam`` and ``AdamW``."""

    learning_rate: float = 1e-3
    """The rate after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    decoupled_weight_decay: float = 0.0
    """Shrinks w by rate * this at every step (AdamW). The other kind of weight decay is part of the loss."""

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            UsageError: an option breaks its rule.
        """
        super().__post_init__()
        object.__setattr__(self, "betas", tuple(self.betas) if isinstance(self.betas, list) else self.betas)
        pair = isinstance(self.betas, tuple) and len(self.betas) == 2
        if not pair or not all(isinstance(beta, (int, float)) and 0 <= beta < 1 for beta in self.betas):
            fail(self, "betas", "must be two numbers from 0 to below 1, as in [0.9, 0.999]")
        check_number(self, "epsilon", 0.0, open_low=True)
        check_number(self, "decoupled_weight_decay", 0.0)

    def init(self, objective: Objective) -> State:
        """Parameters, both moments (n,) as zeros, and the number of steps for the bias correction."""
        parameters = objective.initial_vector()
        return {
            "parameters": parameters,
            "first_moment": torch.zeros_like(parameters),
            "second_moment": torch.zeros_like(parameters),
            "steps": 0,
        }

    def step(self, objective: Objective, state: State, batch: Batch) -> tuple[State, StepReport]:
        """One update. *Collective*, one reduction. A loss or gradient that is not finite leaves the state untouched."""
        parameters: torch.Tensor = state["parameters"]  # type: ignore[assignment]
        rate = self.rate(batch.position)
        gradient, report = evaluate(objective, state, batch, rate)
        if not report.finite:
            return state, report
        if self.decoupled_weight_decay:
            parameters.mul_(1 - rate * self.decoupled_weight_decay)
        self._update(state, gradient, rate)
        objective.release(gradient)
        return state, report

    def _update(self, state: State, gradient: torch.Tensor, rate: float) -> None:
        """Five passes in place; the gradient's memory becomes the denominator's."""
        first: torch.Tensor = state["first_moment"]  # type: ignore[assignment]
        second: torch.Tensor = state["second_moment"]  # type: ignore[assignment]
        steps = state["steps"] = int(state["steps"]) + 1
        first.lerp_(gradient, 1 - self.betas[0])
        second.mul_(self.betas[1]).addcmul_(gradient, gradient, value=1 - self.betas[1])
        bias_first, bias_second = 1 - self.betas[0] ** steps, 1 - self.betas[1] ** steps
        root = torch.sqrt(second, out=gradient).div_(math.sqrt(bias_second)).add_(self.epsilon)
        state["parameters"].addcdiv_(first, root, value=-rate / bias_first)  # type: ignore[union-attr]
