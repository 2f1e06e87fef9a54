"""The batches of a run one after the other, as this rank holds their samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from hpcopt.data.batches import BatchGrowth, BatchPlan
from hpcopt.objective.protocol import Batch

MOST_BATCHES = 2**53
"""More than any run makes: a number of epochs may be so large that in batches it is infinite."""


@dataclass(frozen=True)
class Sampler:
    """What decides the batches of a run.

    Attributes:
        plan: which samples form which batch, with the size of the first batches.
        device: where the positions are wanted.
        growth: when later batches are larger.
    """

    plan: BatchPlan
    device: torch.device
    growth: BatchGrowth = field(default_factory=BatchGrowth)

    @property
    def per_epoch(self) -> int:
        """Batches in the first epoch."""
        return self.plan.per_epoch

    @property
    def grows(self) -> bool:
        """Whether later batches may be larger."""
        return self.growth.factor > 1.0 and self.plan.per_epoch > 1

    def begin(self) -> BatchSequence:
        """The batches from the first one on."""
        return BatchSequence(self.plan, self.device, self.growth)


class BatchSequence:
    """The batches of a run and where it stands in them: the epoch, the number in it and the size are all of its state.

    The size changes between epochs only, by a training loss that is the same on all ranks, and so does the number of
    batches in an epoch. All that is counted in epochs is rounded to whole batches of the size that is in use.

    Attributes:
        done: batches of the size in use that the epochs done amount to.
    """

    def __init__(self, plan: BatchPlan, device: torch.device, growth: BatchGrowth) -> None:
        """Before the first batch; use ``Sampler.begin``."""
        self._plan, self._device, self._growth = plan, device, growth
        self.done, self._last_loss = 0, math.inf

    @property
    def size(self) -> int:
        """Largest number of samples in a batch over all ranks, without overlap."""
        return self._plan.batch

    @property
    def epochs(self) -> float:
        """Epochs done, a fraction within an epoch."""
        return self.done / self._plan.per_epoch

    def count(self, epochs: float) -> int:
        """Batches of the size in use that come closest to ``epochs``, at least one."""
        return max(1, round(min(epochs * self._plan.per_epoch, MOST_BATCHES)))

    def next(self) -> Batch:
        """The next batch."""
        plan, position = self._plan, self.done / self._plan.per_epoch
        epoch, number = key = divmod(self.done, plan.per_epoch)
        self.done += 1
        if plan.per_epoch == 1:
            return Batch(None, plan.count, plan.total, key, position)
        chosen = plan.local(epoch, number)
        indices, total = torch.from_numpy(chosen).to(self._device), plan.size(number, epoch)
        return Batch(indices, len(chosen), total, key, position, ends_epoch=number + 1 == plan.per_epoch)

    @property
    def wants_loss(self) -> bool:
        """Whether the size of the next batches depends on the training loss at this point."""
        return self.done % self._between_losses == 0

    def next_look(self, every: float) -> int:
        """What ``done`` is when ``every`` so many epochs are over again, or the training loss is wanted before."""
        done = self.done
        return done + min(between - done % between for between in (self.count(every), self._between_losses))

    @property
    def _between_losses(self) -> int:
        """Batches from one training loss that is wanted to the next."""
        can_grow = self._growth.factor > 1.0 and self._plan.per_epoch > 1
        return self._growth.every * self._plan.per_epoch if can_grow else MOST_BATCHES

    def learn(self, train_loss: float) -> None:
        """Let batches grow where the training loss, the same on all ranks, asks for it; unused where not wanted."""
        if not self.wants_loss:
            return
        if self.done and self._growth.wanted(train_loss, self._last_loss):
            self._resize(self._growth.enlarged(self.size, self._plan.total))
        self._last_loss = train_loss

    def state(self) -> dict[str, int | float]:
        """All that ``restore`` needs."""
        epoch, number = divmod(self.done, self._plan.per_epoch)
        return {"epoch": epoch, "number": number, "size": self.size, "last_loss": self._last_loss}

    def restore(self, state: Mapping[str, int | float]) -> None:
        """Go on as the sequence that gave ``state`` would have, on any number of ranks."""
        self._last_loss = float(state["last_loss"])
        self._resize(int(state["size"]))
        self.done = int(state["epoch"]) * self._plan.per_epoch + int(state["number"])

    def _resize(self, size: int) -> None:
        if size != self.size:
            epochs = self.done // self._plan.per_epoch
            self._plan = self._plan.resized(size)
            self.done = epochs * self._plan.per_epoch
