"""Subsets of a batch in a permuted cycle, for curvature on fewer samples than the gradient.

The positions 0 .. B-1 within a batch of B samples are divided as ``data.batches`` divides a training set: each subset
takes its share of every contiguous part, so of every rank's, and counters alone decide.
"""

from __future__ import annotations

import torch

from hpcopt.data.batches import BatchPlan
from hpcopt.objective.protocol import Batch
from hpcopt.random import key64


class Subsets:
    """Draws subsets of batches. Never communicates.

    Args:
        seed: the run's seed.
        device: where positions are wanted.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed, self._device = key64(seed, "subset"), device
        self._plan: BatchPlan | None = None

    def take(self, batch: Batch, size: int, number: int, start: int) -> Batch:
        """The ``number``-th subset of about ``size`` samples, or the batch itself when it has no more.

        Args:
            batch: as this rank holds it.
            size: samples of a subset over all ranks, at least 1.
            number: counts the subsets, through all cycles, from 0.
            start: how many of the batch's samples the ranks before this one hold.
        """
        if size >= batch.total:
            return batch
        plan = self._plan_of(batch, size, start)
        cycle, place = divmod(number, plan.per_epoch)
        positions = torch.from_numpy(plan.local(cycle, place)).to(self._device)
        indices = positions if batch.indices is None else batch.indices[positions]
        return Batch(indices, len(positions), plan.size(place, cycle), batch.key, batch.position)

    def _plan_of(self, batch: Batch, size: int, start: int) -> BatchPlan:
        """The plan for a batch of this shape; the last one is kept, with the order of its cycle."""
        plan, shape = self._plan, (batch.total, start, batch.count, size)
        if plan is None or (plan.total, plan.start, plan.count, plan.batch) != shape:
            plan = self._plan = BatchPlan(*shape, self._seed)
        return plan
