"""What goes into the training loop and what comes out: criteria, listeners, the keeper of checkpoints, the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hpcopt.objective.protocol import Vector
from hpcopt.solvers.solver import StopReason
from hpcopt.train.evaluation import Metrics
from hpcopt.train.sampler import BatchSequence
from hpcopt.train.snapshot import Snapshot

OUT_OF_TIME, SAVE, LEAVE = 1.0, 2.0**16, 2.0**32
"""Requests that ranks add up in the reductions of an iteration, far enough apart to be told from their sum."""


@dataclass(frozen=True)
class Criteria:
    """When the run ends, after ``iterations`` or else after ``epochs``, and how many epochs lie between evaluations."""

    iterations: int | None = None
    epochs: float = math.inf
    evaluate_every: float = 1.0
    train_loss: float | None = None
    test_accuracy: float | None = None
    seconds: float | None = None
    give_up_after: int = 20
    check_agreement: bool = False


class Listener(Protocol):
    """Something on rank 0 that is told what happened: the record, the progress display, a user's callback.

    One that has an attribute ``seldom`` which is true is told of an iteration a few times a second only.
    """

    def iteration(self, **columns: Any) -> None:
        """One step is done; the columns are those of the table ``iterations`` in the record.

        ``local_iterations`` has one number a rank; it is empty where the ranks did not iterate on their own.
        """
        ...

    def evaluation(self, **columns: Any) -> None:
        """Training and test set were evaluated; the columns are those of the table ``evaluations``."""
        ...

    def rank_times(
        self, iteration: int, step: Sequence[float], waited: Sequence[float], others: Sequence[float]
    ) -> None:
        """Seconds each rank spent in steps since the last call, of these waiting in communication, and for others."""
        ...


@dataclass
class Result:
    """What a run came to, counted since its first start.

    Attributes:
        stop: why it ended.
        parameters: the last point (n,), or the best one when the run diverged.
        best_parameters: the point of the best evaluation (n,).
        initial, final, best: figures before the first step, of the latest evaluation and of the best one.
        best_epoch: when that was.
        iterations, epochs: done.
        seconds: in steps.
        accepted, rejected: how many steps changed w, or did not.
        history: the rows of all evaluations.
        resumed_from: the iteration after which this start went on; None when it was the first.
        seconds_here: wall time of this start.
        saved, not_saved: checkpoints of this start, and attempts that failed.
        seconds_saving: wall time of this start that went into them.
        seconds_evaluating, seconds_recording: wall time of this start on this rank that went into evaluations, and into
            telling the listeners, the record among them.
    """

    stop: StopReason
    parameters: Vector
    best_parameters: Vector
    initial: Metrics
    final: Metrics
    best: Metrics
    best_epoch: float
    iterations: int
    epochs: float
    seconds: float
    accepted: int = 0
    rejected: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    resumed_from: int | None = None
    seconds_here: float = 0.0
    saved: int = 0
    not_saved: int = 0
    seconds_saving: float = 0.0
    seconds_evaluating: float = 0.0
    seconds_recording: float = 0.0

    @property
    def share_saving(self) -> float:
        """The part of this start's wall time that went into checkpoints."""
        return self.seconds_saving / self.seconds_here if self.seconds_here else 0.0


class Keeper(Protocol):
    """Saves the run, and says when it wants to. The ranks agree on that in the reductions of an iteration.

    Attributes:
        saved, failed: checkpoints since this start, and attempts that failed.
        seconds: wall time that went into them.
    """

    saved: int
    failed: int
    seconds: float

    def asks(self) -> float:
        """What this rank wants after the coming iteration: 0, ``SAVE``, ``LEAVE`` or their sum."""
        ...

    def told_to_end(self, saved: bool) -> bool:
        """Whether ``hpcopt stop`` asks for the end where the run was just ``saved``, or not. *Collective*."""
        ...

    def is_due(self, batches: BatchSequence) -> bool:
        """Whether to save here in any case, the same on all ranks."""
        ...

    def save(self, snapshot: Snapshot) -> bool:
        """Save; False when that failed, which never ends the run. *Collective*."""
        ...
