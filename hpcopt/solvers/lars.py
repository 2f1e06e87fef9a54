"""Layer-wise adaptive rate scaling, for large batches (You, Gitman and Ginsburg 2017, arXiv 1708.03888, algorithm 1).

    ratio_l = trust |w_l| / (|g_l| + decay |w_l|);   v <- momentum v + rate ratio_l (g_l + decay w_l);   w <- w - v

for every parameter tensor l. Tensors with one dimension (biases, normalisation) take ratio 1 and no decay, as is now
custom, and so does a tensor whose weights or gradient are all 0. Layers must be whole on a rank: w replicated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hpcopt.objective.protocol import Batch, Objective
from hpcopt.solvers.checks import check_effects, check_number
from hpcopt.solvers.first_order import evaluate
from hpcopt.solvers.schedules import ScheduledRate
from hpcopt.solvers.solver import State, StepReport


@dataclass(frozen=True, kw_only=True)
class LARS(ScheduledRate):
    """Momentum descent in which every layer moves by a part of its own norm."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"learning_rate": 2.0, "schedule": "quadratic", "warmup_epochs": 5.0, "weight_decay": 5e-4}
    }

    learning_rate: float = 2.0
    """The global rate after the warm-up (the paper's for batches of 512; it grows with the batch); times ``trust`` it
    is the relative change of a layer in a step."""
    momentum: float = 0.9
    """Share of the last update that is kept, from 0 to below 1."""
    trust: float = 0.001
    """Trust coefficient: relative change of a layer at global rate 1."""
    weight_decay: float = 0.0
    """Decay within the ratio and the update. ``loss.weight_decay`` is already part of the gradient: use one of them."""

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            UsageError: an option breaks its rule.
        """
        super().__post_init__()
        check_number(self, "momentum", 0.0, 1.0, open_high=True)
        check_number(self, "trust", 0.0, open_low=True)
        check_number(self, "weight_decay", 0.0)
        check_effects(self)

    def init(self, objective: Objective) -> State:
        """Parameters and the velocity (n,) of zeros."""
        parameters = objective.initial_vector()
        return {"parameters": parameters, "velocity": torch.zeros_like(parameters)}

    def step(self, objective: Objective, state: State, batch: Batch) -> tuple[State, StepReport]:
        """One update. *Collective*, one reduction. A loss or gradient that is not finite leaves the state untouched."""
        parameters: torch.Tensor = state["parameters"]  # type: ignore[assignment]
        velocity: torch.Tensor = state["velocity"]  # type: ignore[assignment]
        rate = self.rate(batch.position)
        gradient, report = evaluate(objective, state, batch, rate)
        if not report.finite:
            return state, report
        scale_layers(objective, parameters, gradient, self.trust, self.weight_decay, add_decay=True)
        parameters.sub_(velocity.mul_(self.momentum).add_(gradient, alpha=rate))
        objective.release(gradient)
        return state, report


def scale_layers(
    objective: Objective,
    parameters: torch.Tensor,
    gradient: torch.Tensor,
    trust: float,
    decay: float,
    *,
    epsilon: float = 0.0,
    add_decay: bool = False,
) -> None:
    """Turn g into ratio_l g_l, layer by layer, in place and with one wait for the device. *Collective*.

    Args:
        objective: knows the layers.
        parameters: w (n,).
        gradient: g (n,).
        trust: trust coefficient.
        decay: what is added to |g_l| for each |w_l|.
        epsilon: what is added to |g_l| besides.
        add_decay: whether it is ratio_l (g_l + decay w_l) that is wanted.
    """
    slices = layers(objective)
    if not slices:
        return
    weights = [parameters[part] for part in slices]
    gradients = [gradient[part] for part in slices]
    norms = torch.stack([*torch._foreach_norm(weights), *torch._foreach_norm(gradients)])
    size, slope = torch.tensor(objective.agree(*norms.tolist()), dtype=norms.dtype).chunk(2)
    if add_decay and decay:
        torch._foreach_add_(gradients, weights, alpha=decay)
    ratio = trust * size / (slope + epsilon + decay * size)
    ratio = torch.where((size > 0) & (slope > 0), ratio, torch.ones_like(ratio))
    torch._foreach_mul_(gradients, list(ratio.unbind()))


def layers(objective: Objective) -> list[slice]:
    """The parameter tensors that LARS scales: those with two dimensions or more."""
    return [part for part, shape in objective.parameter_tensors() if len(shape) > 1]
