"""When a run is saved, and saving it: by epochs, by seconds, or as often as a small share of the time allows."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from hpcopt.checkpoint.arrays import describe
from hpcopt.checkpoint.names import MODEL, tensor_path
from hpcopt.checkpoint.store import CheckpointStore, Contents
from hpcopt.config import CheckpointOptions
from hpcopt.errors import CheckpointError
from hpcopt.objective.problem import Problem
from hpcopt.solvers.solver import Solver
from hpcopt.train.protocol import LEAVE, SAVE
from hpcopt.train.run.requests import Requests
from hpcopt.train.sampler import BatchSequence, Sampler
from hpcopt.train.snapshot import Snapshot, descriptions, own_contents, replicated_contents

logger = logging.getLogger(__name__)

FIRST_SECONDS = 60.0
"""The first checkpoint by share of the time comes after so long: what one costs is not known yet."""


class CheckpointKeeper:
    """Saves one run.

    Args:
        objective: the problem.
        solver: the method.
        sampler: what decides its batches.
        store: the run's checkpoints.
        options: when to save.
        requests: what this rank has been asked.
        before: called before every save, so that what else is kept of the run is not behind its checkpoint.

    Attributes:
        saved: checkpoints published since this start.
        failed: attempts since then that failed.
        seconds: time spent on saving since then, also in vain.

    Raises:
        UsageError: the model holds something that cannot be saved.
    """

    def __init__(
        self,
        objective: Problem,
        solver: Solver,
        sampler: Sampler,
        store: CheckpointStore,
        options: CheckpointOptions,
        requests: Requests,
        before: Callable[[], object] = lambda: None,
    ) -> None:
        for name, tensor in objective.model.tensors().items():
            describe(tensor_path(MODEL, name), tensor)
        self._objective, self._solver, self._sampler, self._store = objective, solver, sampler, store
        self._options, self._requests, self._before = options, requests, before
        self.saved, self.failed, self.seconds = 0, 0, 0.0
        self._warned, self._best = False, -1
        self._due = self._next_due(FIRST_SECONDS)

    def asks(self) -> float:
        """``LEAVE`` when this rank was asked to stop; ``SAVE`` when rank 0's clock says so."""
        leave = LEAVE if self._requests.pending else 0.0
        return leave + (SAVE if time.monotonic() >= self._due else 0.0)

    def told_to_end(self, saved: bool) -> bool:
        """Whether ``hpcopt stop`` asks for the end where the run was just ``saved``, or not. *Collective*."""
        # Rank 0 alone looks for the file.
        return bool(self._objective.comm.broadcast_scalars([float(self._requests.ends(saved))])[0])

    def is_due(self, batches: BatchSequence) -> bool:
        """Whether as many epochs are done as were asked for between checkpoints."""
        every = self._options.every_epochs
        return every is not None and batches.done % batches.count(every) == 0

    def save(self, snapshot: Snapshot) -> bool:
        """Save; False, with a warning the first time, when it cannot be done. *Collective*."""
        objective, model, started = self._objective, self._objective.model, time.monotonic()
        self._before()
        running = model.copy_buffers()
        model.bind(snapshot.point)
        if snapshot.delivers_best:
            model.restore_buffers(snapshot.best_buffers)
        else:
            if "average" in snapshot.state:
                objective.estimate_statistics(snapshot.point)
            model.synchronize_buffers()
        try:
            contents = replicated_contents(objective, self._solver, self._sampler, snapshot)
            saved = self._publish(snapshot, contents, own_contents(running, self._solver, snapshot))
        finally:
            model.restore_buffers(running)
        cost = time.monotonic() - started
        self._due = self._next_due(cost / self._options.share)
        self.seconds += cost
        return saved

    def _publish(self, snapshot: Snapshot, contents: Contents, own: Contents) -> bool:
        step, about = snapshot.standing.iterations, descriptions(self._solver)
        try:
            # Each checkpoint holds the best point so far, so the first one after it was found is the one to keep.
            self._store.save(step, contents, own, about, best=snapshot.standing.best_iteration > self._best)
        except CheckpointError as error:
            self.failed += 1
            if not self._warned:
                logger.warning("%s The run goes on, and says no more of this until a checkpoint succeeds.", error)
            self._warned = True
            return False
        self.saved, self._warned, self._best = self.saved + 1, False, snapshot.standing.best_iteration
        return True

    def _next_due(self, seconds: float) -> float:
        """When this rank's clock asks for a save after one now, ``seconds`` later where the user has not said when."""
        options = self._options
        if self._objective.comm.rank or (options.every_epochs is not None and options.every_seconds is None):
            return math.inf
        return time.monotonic() + (seconds if options.every_seconds is None else options.every_seconds)
