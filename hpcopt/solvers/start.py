"""Loss and gradient at the start of a step, kept from the last one where they are still those of the batch."""

from __future__ import annotations

import math

import torch

from hpcopt.objective.protocol import Batch, Objective, Vector
from hpcopt.solvers.agreement import agreed_dot
from hpcopt.solvers.solver import State

ROUNDING = 10.0
"""Losses closer than this many relative roundings are equal (Conn, Gould and Toint 2000, section 17.4.2)."""


def empty_start(parameters: Vector) -> State:
    """The state's entries for w (n,) and what is known there: nothing yet."""
    return {
        "parameters": parameters,
        "gradient": torch.zeros_like(parameters),
        "gradient_square": 0.0,
        "loss": 0.0,
        "known": False,
        "key_epoch": 0,
        "key_number": 0,
        "loss_scale": 0.0,
        "gradient_scale": 0.0,
    }


def evaluate_start(objective: Objective, state: State, batch: Batch) -> bool:
    """Put loss and gradient at w in the state, evaluated where they are not known (*collective*).

    On a full batch those of the last accepted trial are still right, unless the model draws something from the batch's
    key. Also notes the first loss and gradient norm of the run, which tell later what is small.

    Returns:
        False when they are not finite; the state is then as it was.
    """
    key = (int(state["key_epoch"]), int(state["key_number"]))
    same = key == batch.key or objective.deterministic
    if not (state["known"] and same and batch.indices is None):
        loss, gradient = objective.value_and_gradient(state["parameters"], batch)  # type: ignore[arg-type]
        square = agreed_dot(objective, gradient, gradient)
        if not (math.isfinite(loss) and math.isfinite(square)):
            return False
        state |= {"loss": loss, "gradient": gradient, "gradient_square": square}
    state |= {"known": batch.indices is None, "key_epoch": batch.key[0], "key_number": batch.key[1]}
    if state["gradient_scale"] == 0:
        state |= {"loss_scale": abs(float(state["loss"])), "gradient_scale": math.sqrt(float(state["gradient_square"]))}
    return True


def move(state: State, batch: Batch, point: Vector, loss: float, gradient: Vector, square: float) -> None:
    """Accept a trial: w, and what is known there."""
    state["parameters"].copy_(point)  # type: ignore[union-attr]
    state |= {"gradient": gradient, "gradient_square": square, "loss": loss, "known": batch.indices is None}


def first_length(objective: Objective, state: State) -> float:
    """A length for the first step along -g: |f| / |g|, but at most |w| (1 where that is 0); *collective*.

    It is the step at which the linear model of the loss reaches 0 (Polyak's step length), and it has the units of w
    whatever the scale of the loss and of the parameters.
    """
    parameters: Vector = state["parameters"]  # type: ignore[assignment]
    longest = math.sqrt(agreed_dot(objective, parameters, parameters)) or 1.0
    norm = math.sqrt(float(state["gradient_square"]))
    return min(abs(float(state["loss"])) / norm or longest, longest)


def noise(state: State) -> float:
    """What two equal losses may differ by: a mean of terms that were as large as the first loss at some time."""
    eps = torch.finfo(state["parameters"].dtype).eps  # type: ignore[union-attr]
    return eps * max(ROUNDING * abs(float(state["loss"])), float(state["loss_scale"]))


def is_stationary(state: State) -> bool:
    """Whether the gradient is as small, against the first one, as rounding of the loss lets any method make it.

    Near a minimum f - f* ~ |g|^2, so a loss known to eps gives a gradient known to sqrt(eps).
    """
    eps = torch.finfo(state["parameters"].dtype).eps  # type: ignore[union-attr]
    return math.sqrt(float(state["gradient_square"])) <= ROUNDING * math.sqrt(eps) * float(state["gradient_scale"])
