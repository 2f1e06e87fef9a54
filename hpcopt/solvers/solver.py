"""The interface every method implements: a solver proposes steps, the loop in ``train`` decides when to end.

A solver is an immutable bundle of options. What changes from step to step is in its state, a flat mapping of names
to tensors and scalars, so that checkpoints and tools need to know nothing about the method.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeAlias

import torch

from hpcopt.objective.protocol import Batch, Objective, Vector

State: TypeAlias = dict[str, torch.Tensor | float | int | bool]
"""Flat and complete: restoring it restores the method. ``state["parameters"]`` is w. Where there is a
``state["average"]``, it is the point that is evaluated and delivered instead of w."""


def delivered(state: State) -> Vector:
    """The point that is evaluated and delivered (n,): a mean of iterates where the method keeps one, else w."""
    point = state.get("average", state["parameters"])
    assert not isinstance(point, (float, int))
    return point


OTHER_TENSORS = (
    *("gram", "window"),
    *("factors", "factor_inverses", "factor_boosts", "factor_layers", "factor_others"),
)
"""Keys of those tensors in states that are no vectors (..., n) of the n variables, whatever their shape."""


class StopReason(Enum):
    """Why an iteration or a run ended. Positive codes are good ends, negative codes are failures, 0 is still going."""

    RUNNING = (0, "The run is going on.")
    EPOCHS_DONE = (1, "The requested number of epochs or iterations is done.")
    TRAIN_LOSS_REACHED = (2, "The training loss reached run.stop.train_loss.")
    TEST_ACCURACY_REACHED = (3, "The test accuracy reached run.stop.test_accuracy.")
    SECONDS_SPENT = (4, "The time given in run.stop.seconds is spent.")
    GRADIENT_SMALL = (5, "The gradient is zero to rounding: the point is stationary.")
    SAVED = (7, "The run was asked to stop; it is saved and goes on when it is started again.")
    STOPPED = (8, "hpcopt stop ended the run; it is saved and goes on when it is started again.")
    RADIUS_SMALL = (-2, "The trust region shrank to its smallest radius without finding a decrease.")
    LINE_SEARCH_FAILED = (-3, "The line search found no acceptable step within its evaluations.")
    NOT_FINITE = (-4, "Loss, gradient or step was not finite in too many iterations in a row.")
    NOT_SAVED = (-5, "The run was asked to stop and could not be saved; the last checkpoint is as it was.")

    def __init__(self, code: int, sentence: str) -> None:
        self.code = code
        self.sentence = sentence


@dataclass
class StepReport:
    """What one step did. Losses include weight decay and are of the batch; NaN means not known.

    Attributes:
        loss: f at the start of the step.
        loss_after: f on the same batch at the point where the step ended.
        gradient_norm: 2-norm of the gradient at the start.
        step_norm: 2-norm of the change of w (0 when rejected).
        step_size: learning rate or line-search step length.
        accepted: whether w changed.
        rho: actual over predicted decrease.
        radius: trust-region radius after the update.
        damping: what is added to the curvature, after the update.
        predicted: predicted decrease.
        inner_iterations: iterations of the subproblem or line search.
        local_iterations: those of each rank, where the ranks iterate on their own.
        finite: False when the step met a number that is not finite.
        stop: a reason to end the run that only the solver can see, else RUNNING.
    """

    loss: float
    loss_after: float = float("nan")
    gradient_norm: float = float("nan")
    step_norm: float = 0.0
    step_size: float = float("nan")
    accepted: bool = True
    rho: float = float("nan")
    radius: float = float("nan")
    damping: float = float("nan")
    predicted: float = float("nan")
    inner_iterations: int = 0
    local_iterations: tuple[int, ...] = ()
    finite: bool = True
    stop: StopReason = StopReason.RUNNING


class Solver(Protocol):
    """One method. Implementations are frozen dataclasses whose fields are the keys of the ``[solver]`` table.

    Where entries of its state differ from rank to rank, a class attribute ``OWN_STATE`` names how their keys begin.
    """

    def init(self, objective: Objective) -> State:
        """The state before the first step; ``state["parameters"]`` is ``objective.initial_vector()``."""
        ...

    def step(self, objective: Objective, state: State, batch: Batch) -> tuple[State, StepReport]:
        """One iteration on ``batch``. *Collective*. May update the tensors of ``state`` in place.

        Loss or gradient that is not finite never reaches the state: the step reports ``accepted=False, finite=False``.
        """
        ...
