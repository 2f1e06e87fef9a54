"""Which samples make up each batch: counter-based sampling that is the same for every number of ranks.

The samples 0 .. N-1 are cut into cells of nb consecutive samples, nb being the number of batches in an epoch. In each
cell a permutation drawn from (seed, "batches", epoch, sample) gives every batch exactly one sample; the last cell may
be shorter and gives some batches none. So

- every sample comes exactly once an epoch, and the batches of an epoch differ in size by one at most,
- a batch takes its share of every contiguous shard: a rank that owns count samples gets count/nb of them, give or
  take fewer than two, whatever the shard,
- no rank needs to know anything about the others, and a resumed run needs (seed, epoch, number) only.

With overlap p, batch b also takes the sample of batch b+1 (the last batch: of batch 0 of the same epoch) in exactly
round(p * number of complete cells) of the complete cells, drawn anew for each batch.

Letters: N samples of the set, nb batches in an epoch, K complete cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcopt.checks import is_number, is_whole
from hpcopt.errors import UsageError
from hpcopt.random import uniform_keys


@dataclass(frozen=True)
class BatchGrowth:
    """When batches become larger: where the training loss no longer falls, steps on more samples are worth their cost.

    At the end of every ``every``-th epoch the training loss is looked at. Where it has not fallen by more than
    ``tolerance`` since the last look (the first: before training), the batch is multiplied by ``factor``, up to the
    whole set. (Factor 1.5, 3 epochs and 0.01 in the published code of APTS.)

    Raises:
        UsageError: a number breaks its rule.
    """

    factor: float = 1.0
    every: int = 3
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        """Check every number."""
        if not is_number(self.factor, 1.0):
            raise UsageError(
                f"data.batch_growth is {self.factor!r}; it must be a number of at least 1 (1.5 makes a batch half as"
                " large again, 1 leaves all batches as they are)."
            )
        if not is_whole(self.every, 1):
            raise UsageError(
                f"data.batch_growth_every is {self.every!r}; it must be a whole number of epochs of at least 1."
            )
        if not is_number(self.tolerance, 0.0):
            raise UsageError(
                f"data.batch_growth_tolerance is {self.tolerance!r}; it must be a number of at least 0: by how much the"
                " training loss must fall between two looks for the batch to stay as it is."
            )

    def wanted(self, loss: float, last: float) -> bool:
        """Whether a training loss says so after the one of the look before; NaN does."""
        return not loss < last - self.tolerance

    def enlarged(self, batch: int, total: int) -> int:
        """The batch after one that grows, at most ``total``; larger by one sample at least."""
        return min(max(int(min(self.factor * batch, total)), batch + 1), total)


class BatchPlan:
    """The batches of one rank's shard. Pure arithmetic; the order of one epoch is kept, so ``local`` is O(batch).

    Args:
        total: N, samples of the whole set.
        start: position of the shard's first sample in the whole set.
        count: samples of the shard.
        batch: largest number of samples in a batch over all ranks (without overlap); None takes all of them.
        seed: the run's seed.
        overlap: fraction of a batch, in [0, 1), that it shares with the next one.

    Raises:
        UsageError: the batch is larger than the set or smaller than 1, the overlap is not in [0, 1).
    """

    def __init__(self, total: int, start: int, count: int, batch: int | None, seed: int, overlap: float = 0.0) -> None:
        check_batch(batch, total)
        if not 0.0 <= overlap < 1.0:
            raise UsageError(
                f"data.overlap is {overlap}; it must be at least 0 and less than 1 (0.3 lets each batch"
                " take 30 % of the next one). Set it to 0 for batches that share nothing."
            )
        if start < 0 or count < 0 or start + count > total:
            raise ValueError(f"shard {start}..{start + count} does not lie within 0..{total}")
        self.total, self.start, self.count, self.seed, self.overlap = total, start, count, seed, overlap
        self.batch = total if batch is None else batch
        self.per_epoch = 1 if batch is None else -(-total // batch)
        self._cells = total // self.per_epoch
        self._shared = round(overlap * self._cells) if self.per_epoch > 1 else 0
        self._epoch: int | None = None
        self._first_cell = 0
        self._picks = np.empty((0, 0), np.int64)
        self._own, self._ends = np.empty(0, np.int64), [0]
        self._last_picks: list[int] = []

    def local(self, epoch: int, number: int) -> np.ndarray:
        """Positions in this shard of the samples of batch ``number`` of an epoch: int64, ascending, maybe empty."""
        self._prepare(epoch, number)
        own = self._own[self._ends[number] : self._ends[number + 1]]
        if not self._shared:
            return own
        shared = self._picks[(number + 1) % self.per_epoch][self._shared_cells(epoch, number)]
        return np.sort(np.concatenate([own, shared[self._has(shared)] - self.start]))

    def size(self, number: int, epoch: int) -> int:
        """Samples of batch ``number`` of an epoch over all ranks."""
        self._prepare(epoch, number)
        return self._cells + int(self._last_picks[number] < self.total) + self._shared

    def resized(self, batch: int) -> BatchPlan:
        """The plan of the same shard with batches of another size."""
        return BatchPlan(self.total, self.start, self.count, batch, self.seed, self.overlap)

    def _prepare(self, epoch: int, number: int) -> None:
        """Have the permutations of an epoch's cells that overlap this shard, and of the last, shorter cell."""
        nb = self.per_epoch
        if not 0 <= number < nb:
            raise IndexError(f"batch {number} of an epoch of {nb}")
        if epoch == self._epoch:
            return
        first = self.start // nb
        stop = -(-(self.start + self.count) // nb) if self.count else first
        self._first_cell = first
        order = self._permuted(epoch, np.append(np.arange(first, stop), self._cells))
        self._picks, self._last_picks = order[:-1].T, order[-1].tolist()
        mine = self._has(self._picks)
        self._own = self._picks[mine] - self.start
        self._ends = [0, *mine.sum(axis=1).cumsum().tolist()]
        self._epoch = epoch

    def _has(self, samples: np.ndarray) -> np.ndarray:
        """Which of some samples of the whole set are in this shard."""
        return np.asarray((samples >= self.start) & (samples < self.start + self.count))

    def _permuted(self, epoch: int, cells: np.ndarray) -> np.ndarray:
        """Samples of some cells, shape (cells, nb): column b holds what batch b gets.

        The last cell is filled up with samples that do not exist (>= N), so that it is drawn like the others.
        """
        samples = cells[:, None] * self.per_epoch + np.arange(self.per_epoch)
        order = np.argsort(uniform_keys(self.seed, "batches", epoch, samples), axis=1)
        order += samples[:, :1]
        return order

    def _shared_cells(self, epoch: int, number: int) -> np.ndarray:
        """Which rows of ``_picks`` batch ``number`` shares with the next one: all ranks draw the same cells."""
        counters = np.arange(number * self._cells, (number + 1) * self._cells)
        keys = uniform_keys(self.seed, "overlap", epoch, counters)
        cells = np.argpartition(keys, self._shared - 1)[: self._shared] - self._first_cell
        return cells[(cells >= 0) & (cells < self._picks.shape[1])]


def check_batch(batch: int | None, total: int) -> None:
    """Refuse a batch size that the set cannot fill.

    Raises:
        UsageError: the batch is smaller than 1 or larger than the set.
    """
    if batch is None:
        return
    if batch < 1:
        raise UsageError(
            f"data.batch is {batch}; a batch needs at least one sample. Set it to a positive number, or to"
            ' "full" for all samples.'
        )
    if batch > total:
        raise UsageError(
            f"data.batch is {batch}, but the training set has only {total} samples; a batch cannot be"
            ' larger than the set. Set it to "full" (all samples in each step) or to a smaller number.'
        )
