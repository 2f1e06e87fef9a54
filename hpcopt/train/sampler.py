"""From the number of an iteration to the samples of its batch, as this rank holds them."""

from __future__ import annotations

import torch

from hpcopt.data.batches import BatchPlan
from hpcopt.objective.protocol import Batch


class Sampler:
    """The batches of a run, one after the other; only arithmetic, so any iteration can be asked for at any time.

    Args:
        plan: which samples form which batch.
        device: where the positions are wanted.
    """

    def __init__(self, plan: BatchPlan, device: torch.device) -> None:
        self._plan, self._device = plan, device
        self.per_epoch = plan.per_epoch

    def __call__(self, iteration: int) -> Batch:
        """The batch of iteration 0, 1, 2, ..."""
        epoch, number = divmod(iteration, self.per_epoch)
        key, position = (epoch, number), iteration / self.per_epoch
        if self.per_epoch == 1:
            return Batch(None, self._plan.count, self._plan.total, key, position)
        indices = torch.from_numpy(self._plan.local(epoch, number)).to(self._device)
        return Batch(indices, len(indices), self._plan.size(number, epoch), key, position)
