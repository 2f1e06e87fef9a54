"""What most steps begin with: loss and gradient, kept from the last one where they are still those of the batch."""

from __future__ import annotations

import math
from typing import cast

import torch

from hpcopt.objective.protocol import Batch, Objective, Vector
from hpcopt.solvers.agreement import agreed_dot
from hpcopt.solvers.solver import State, StepReport, StopReason

FAILURES = 5
"""So many steps in a row that find nothing end a run on full batches."""

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


def evaluate_start(objective: Objective, state: State, batch: Batch, *, own: bool = False) -> StepReport:
    """Put loss and gradient at w in the state, evaluated where they are not known (*collective*).

    On a full batch those of the last accepted trial are still right, unless the model draws something from the batch's
    key. Also notes the first loss and gradient norm of the run, which tell later what is small.

    Args:
        objective: the problem.
        state: as of ``empty_start``.
        batch: of the step.
        own: whether this rank's own loss and gradient go with them.

    Returns:
        The report of a step that has not moved. The gradient norm is above 0 where there is something to do. It is NaN
        where loss or gradient are not finite; the state is then as it was. Where it is 0 on a full batch, the run ends;
        another mini-batch may have a gradient.
    """
    key = (int(state["key_epoch"]), int(state["key_number"]))
    whole, same = batch.indices is None, key == batch.key or objective.deterministic
    if not (state["known"] and same and whole) and not _evaluate(objective, state, batch, own):
        return StepReport(math.nan, accepted=False, finite=False)
    state |= {"known": whole, "key_epoch": batch.key[0], "key_number": batch.key[1]}
    loss, norm = float(state["loss"]), math.sqrt(float(state["gradient_square"]))
    if state["gradient_scale"] == 0:
        state |= {"loss_scale": abs(loss), "gradient_scale": norm}
    stop = StopReason.GRADIENT_SMALL if whole and norm == 0 else StopReason.RUNNING
    return StepReport(loss, loss, norm, accepted=False, stop=stop)


def _evaluate(objective: Objective, state: State, batch: Batch, own: bool) -> bool:
    """Loss and gradient at w; False where they are not finite. *Collective*."""
    parameters, known = cast(Vector, state["parameters"]), cast(State, {})
    if own:
        loss, gradient, known["own_loss"], known["own_gradient"] = objective.value_and_gradients(parameters, batch)
    else:
        loss, gradient = objective.value_and_gradient(parameters, batch)
    square = agreed_dot(objective, gradient, gradient)
    if not (math.isfinite(loss) and math.isfinite(square)):
        return False
    state |= known | {"loss": loss, "gradient": gradient, "gradient_square": square}
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


def count_failure(state: State, batch: Batch, report: StepReport, most: int = FAILURES, least: int = 1) -> None:
    """Note a step that found nothing. On full batches ``most`` in a row end a run, ``least`` at a stationary point."""
    failures = state["failures"] = int(state["failures"]) + 1
    if batch.indices is not None or not report.finite or failures < least:
        return
    if is_stationary(state):
        report.stop = StopReason.GRADIENT_SMALL
    elif failures >= most:
        report.stop = StopReason.LINE_SEARCH_FAILED
