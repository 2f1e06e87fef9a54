"""The part of f that this rank can evaluate alone, for methods whose ranks work on their own between reductions."""

from __future__ import annotations

from typing import Protocol

import torch

from hpcopt.objective.protocol import Batch, Vector, Work
from hpcopt.objective.shard import Shard
from hpcopt.objective.weight_decay import WeightDecay


class Pace(Protocol):
    """Says when a rank must end its local phase. Every rank calls ``begin`` and ``end`` once in every phase."""

    def begin(self) -> None:
        """A phase begins."""
        ...

    def goes_on(self, done: int) -> bool:
        """Whether this rank may make another iteration after ``done`` of them, at least 1."""
        ...

    def end(self) -> None:
        """This rank has ended the phase."""
        ...


class LocalObjective:
    """f_d: the mean loss over the samples of this rank's group in a batch, plus weight decay. Never communicates.

    Here a group is one rank and all variables are its own. ``work`` counts this rank's samples only, in passes over the
    N samples of all ranks, so that the sum over ranks is the work of all.

    Attributes:
        pace: when this rank must end a local phase because others have; None lets it finish.
    """

    def __init__(self, shard: Shard, decay: WeightDecay, samples: int) -> None:
        self._shard, self._decay, self._samples = shard, decay, samples
        self._tensors: list[torch.Tensor] | None = None
        self.work = Work()
        self.pace: Pace | None = None

    def take_work(self) -> Work:
        """The work since the last call; the count starts again from 0."""
        work, self.work = self.work, Work()
        return work

    def begin(self, w: Vector) -> None:
        """A local phase begins; nothing is kept of w, since all variables may change."""
        if self.pace is not None:
            self.pace.begin()

    def goes_on(self, done: int) -> bool:
        """Whether this rank may go on after ``done`` iterations of the phase: unless its pace says enough are done."""
        return self.pace is None or self.pace.goes_on(done)

    def end(self) -> None:
        """This rank has ended the phase."""
        if self.pace is not None:
            self.pace.end()

    def take(self, vector: Vector) -> Vector:
        """``vector`` itself: all variables are this rank's."""
        return vector

    def put(self, own: Vector) -> Vector:
        """``own`` itself."""
        return own

    def value(self, x: Vector, batch: Batch) -> float:
        """f_d(x); 0 loss when this rank has no sample in the batch."""
        w = self._point(x)
        self.work.values += batch.count / self._samples
        return self._shard.loss_sum(w, batch) / max(batch.count, 1) + self._decay.value(w)

    def value_and_gradient(self, x: Vector, batch: Batch) -> tuple[float, Vector]:
        """f_d(x) and its gradient, a new vector."""
        w = self._point(x)
        self.work.gradients += batch.count / self._samples
        gradient, scale = torch.empty_like(x), 1.0 / max(batch.count, 1)
        loss = self._shard.gradient_sum(w, batch, scale, gradient, self._tensors) * scale
        return loss + self._decay.value(w), self._own_decay.add_gradient(gradient, x)

    def _point(self, x: Vector) -> Vector:
        """All n variables when this rank's are x."""
        return x

    @property
    def _own_decay(self) -> WeightDecay:
        """Of this rank's variables."""
        return self._decay
