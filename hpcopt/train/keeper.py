"""When a run is saved, and saving it: by epochs, by seconds, or as often as a small share of the time allows."""

from __future__ import annotations

import logging
import time

from hpcopt.checkpoint.store import CheckpointStore
from hpcopt.config import CheckpointOptions
from hpcopt.errors import CheckpointError
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.solvers.solver import Solver
from hpcopt.train.loop import LEAVE, SAVE
from hpcopt.train.requests import Requests
from hpcopt.train.sampler import BatchSequence
from hpcopt.train.snapshot import Snapshot, descriptions, own_contents, replicated_contents

logger = logging.getLogger(__name__)

FIRST_SECONDS = 60.0
"""The first checkpoint by share of the time comes after so long: what one costs is not known yet."""


class CheckpointKeeper:
    """Saves one run.

    Args:
        objective: the problem.
        solver: the method.
        store: the run's checkpoints.
        options: when to save.
        requests: what this rank has been asked.

    Attributes:
        saved: checkpoints published since this start.
        seconds: time spent on saving since then, also in vain.
    """

    def __init__(
        self,
        objective: DataParallelObjective,
        solver: Solver,
        store: CheckpointStore,
        options: CheckpointOptions,
        requests: Requests,
    ) -> None:
        self._objective, self._solver, self._store = objective, solver, store
        self._options, self._requests = options, requests
        self.saved, self.seconds = 0, 0.0
        self._last, self._cost, self._failed = time.monotonic(), 0.0, False

    def asks(self) -> float:
        """``LEAVE`` when this rank was asked to stop; ``SAVE`` when rank 0's clock says so."""
        leave = LEAVE if self._requests.pending else 0.0
        return leave + (SAVE if self._objective.comm.rank == 0 and self._clock_says_so() else 0.0)

    def is_due(self, batches: BatchSequence) -> bool:
        """Whether as many epochs are done as were asked for between checkpoints."""
        every = self._options.every_epochs
        return every is not None and batches.done % batches.count(every) == 0

    def save(self, snapshot: Snapshot) -> bool:
        """Save; False, with a warning the first time, when it cannot be done. *Collective*."""
        objective, started = self._objective, time.monotonic()
        own = own_contents(objective, self._solver, snapshot)
        running = objective.copy_buffers()
        objective.shard.parameters.bind(snapshot.point)
        objective.synchronize_buffers()
        try:
            contents = replicated_contents(objective, self._solver, snapshot)
            best = snapshot.best_is_here
            self._store.save(snapshot.standing.iterations, contents, own, descriptions(self._solver), best=best)
            self.saved, saved, self._failed = self.saved + 1, True, False
        except CheckpointError as error:
            self._warn(error)
            saved = False
        finally:
            objective.restore_buffers(running)
        self._last = time.monotonic()
        self._cost = self._last - started
        self.seconds += self._cost
        return saved

    def _clock_says_so(self) -> bool:
        options, since = self._options, time.monotonic() - self._last
        if options.every_seconds is not None:
            return since >= options.every_seconds
        if options.every_epochs is not None:
            return False
        return since >= (self._cost / options.share if self._cost else FIRST_SECONDS)

    def _warn(self, error: CheckpointError) -> None:
        if not self._failed:
            logger.warning("%s The run goes on, and says no more of this until a checkpoint succeeds.", error)
        self._failed = True
