"""Adam, and AdamW by its decoupled weight decay.

    m <- beta1 m + (1 - beta1) g;   v <- beta2 v + (1 - beta2) g^2;   w <- w - rate m^ / (sqrt(v^) + epsilon)

with m^ = m / (1 - beta1^t), v^ = v / (1 - beta2^t) (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1); decoupled decay
first shrinks w by rate * decay (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2, in the form of torch).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch

from hpcopt.kernels.choice import sweeps_on
from hpcopt.kernels.sweeps import Moments
from hpcopt.objective.protocol import Batch, Objective, Vector
from hpcopt.solvers.checks import check_effects, check_number, fail
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
        check_effects(self)

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
        parameters = cast(Vector, state["parameters"])
        rate = self.rate(batch.position)
        gradient, report = evaluate(objective, state, batch, rate)
        if not report.finite:
            return state, report
        steps = state["steps"] = int(state["steps"]) + 1
        corrections = 1 - self.betas[0] ** steps, 1 - self.betas[1] ** steps
        by = Moments(self.betas, corrections, self.epsilon, rate, 1 - rate * self.decoupled_weight_decay)
        first, second = cast(Vector, state["first_moment"]), cast(Vector, state["second_moment"])
        sweeps_on(gradient).adam(gradient, first, second, parameters, by)
        objective.release(gradient)
        return state, report
