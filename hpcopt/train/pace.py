"""How far each rank gets in the local phase of a method: to its end, until enough others are done, or as recorded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from hpcopt.comm.communicator import Communicator
from hpcopt.comm.lagged_counter import LaggedCounter, LockStepCounter
from hpcopt.comm.quorum import Quorum
from hpcopt.config import DebugOptions
from hpcopt.errors import UsageError
from hpcopt.objective.local import Pace
from hpcopt.parallel_options import ParallelOptions
from hpcopt.solvers.solver import Solver
from hpcopt.train.job_checks import on_blocks
from hpcopt.train.run.directory import METRICS
from hpcopt.train.run.record_reader import read_local_iterations


class RunPace(Pace, Protocol):
    """The pace of one run after another."""

    def close(self) -> None:
        """The run is over; the next phase is the first of another one. *Collective*."""
        ...


class Unhurried:
    """Every rank finishes."""

    def begin(self) -> None:
        """A phase begins."""

    def goes_on(self, done: int) -> bool:
        """Always."""
        return True

    def end(self) -> None:
        """This rank has ended the phase."""

    def close(self) -> None:
        """Nothing is held."""


class Replay:
    """Every phase ends on this rank where it did in an earlier run.

    Args:
        iterations: this rank's local iterations in each iteration of that run, -1 where it had no phase.
        source: what the user called it.
    """

    def __init__(self, iterations: Sequence[int], source: str) -> None:
        self._rows, self._source, self._phase = iterations, source, 0
        self._iterations = [count for count in iterations if count >= 0]

    def skip(self, iterations: int) -> None:
        """The run goes on after so many iterations."""
        self._phase = sum(count >= 0 for count in self._rows[:iterations])

    def begin(self) -> None:
        """The next phase of the record. Raises UsageError, on all ranks, when there is none."""
        if self._phase == len(self._iterations):
            raise UsageError(
                f"The record of {self._source!r}, which parallel.replay names, ends after {self._phase} local phases, "
                "and this run has come to one more. Let it end there with run.iterations, or replay a longer run.",
                collective=True,
            )
        self._phase += 1

    def goes_on(self, done: int) -> bool:
        """Whether the record has more than ``done`` iterations in this phase."""
        return done < self._iterations[self._phase - 1]

    def end(self) -> None:
        """This rank has ended the phase."""

    def close(self) -> None:
        """Back to the first phase."""
        self._phase = 0


class Slowed:
    """A rank that waits before every local iteration, and otherwise keeps the pace of ``inner``."""

    def __init__(self, inner: RunPace, seconds: float) -> None:
        self.inner, self._seconds = inner, seconds

    def begin(self) -> None:
        """A phase begins, and with it the first iteration."""
        self.inner.begin()
        time.sleep(self._seconds)

    def goes_on(self, done: int) -> bool:
        """As ``inner`` says; the wait is part of the iteration that follows."""
        if not self.inner.goes_on(done):
            return False
        time.sleep(self._seconds)
        return True

    def end(self) -> None:
        """This rank has ended the phase."""
        self.inner.end()

    def close(self) -> None:
        """The run is over."""
        self.inner.close()


def make_pace(
    parallel: ParallelOptions, debug: DebugOptions, comm: Communicator, solver: Solver | None = None
) -> RunPace | None:
    """What the job says of the local phases; None when every rank finishes all of them. *Collective*.

    Args:
        parallel: the job's table.
        debug: the job's table.
        comm: the ranks.
        solver: the method, which decides by which counter a phase ends: APTS by a one-sided one, and Newton by one that
            all ranks read alike, as its publication has it.

    Raises:
        UsageError: on all ranks, when ``parallel.replay`` is no run of as many ranks, or there is no slow rank.
    """
    pace: RunPace | None = None
    if parallel.quorum is not None:
        counter = LockStepCounter if parallel.termination == "lock_step" else LaggedCounter
        pace = counter(comm, parallel.quorum) if on_blocks(solver) else Quorum(comm, parallel.quorum)
    elif parallel.replay is not None:
        with comm.together("reading the run to replay"):
            found = recorded_iterations(parallel.replay, comm.size) if comm.rank == 0 else None
        pace = Replay(comm.broadcast_object(found)[:, comm.rank].tolist(), parallel.replay)
    if debug.slow_rank is not None and debug.slow_rank >= comm.size:
        raise UsageError(
            f"debug.slow_rank = {debug.slow_rank} is not a rank of this run, which has ranks 0 to {comm.size - 1}.",
            collective=True,
        )
    if debug.slow_rank == comm.rank:
        pace = Slowed(pace or Unhurried(), debug.slow_seconds)
    return pace


def skip(pace: RunPace | None, iterations: int) -> None:
    """Tell the pace of a run that was saved that it goes on after so many iterations; only a replay counts them."""
    inner = pace.inner if isinstance(pace, Slowed) else pace
    if isinstance(inner, Replay):
        inner.skip(iterations)


def recorded_iterations(path: str, ranks: int) -> np.ndarray:
    """Local iterations of each rank in the run in ``path``, shape (iterations, ranks), int32; -1 without a phase.

    Raises:
        UsageError: there is no record, or it is damaged, of a method without local phases, or of other ranks.
    """
    record = Path(path) / METRICS
    begin = f"parallel.replay = {path!r} cannot be replayed: "
    if not record.is_file():
        raise UsageError(f"{begin}there is no {METRICS} in it. Give the directory of an earlier run of this job.")
    iterations = read_local_iterations(record)
    if iterations.size == 0:
        raise UsageError(
            f"{begin}its record has no local iterations. Give the directory of a run whose method has local phases "
            "(apts, or newton with blocks), recorded since they are."
        )
    if iterations.shape[1] != ranks:
        raise UsageError(
            f"{begin}it ran on {iterations.shape[1]} ranks, and this run has {ranks}. Start as many ranks as it had."
        )
    return iterations.astype(np.int32)
