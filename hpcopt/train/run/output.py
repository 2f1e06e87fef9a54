"""Where a run leaves its traces: the run directory with record, log and status, opened and closed by all ranks."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpcopt.checkpoint.folder import FOLDER
from hpcopt.checkpoint.restore import newest_valid
from hpcopt.checkpoint.retention import Retention
from hpcopt.checkpoint.store import CheckpointStore
from hpcopt.checkpoint.stored import StoredCheckpoint
from hpcopt.comm.communicator import Communicator
from hpcopt.comm.mpi_library import library_name
from hpcopt.config import CheckpointOptions, Job
from hpcopt.errors import HpcoptError, UsageError
from hpcopt.solvers.solver import StopReason
from hpcopt.train.protocol import Listener, Result
from hpcopt.train.run.directory import JOB, METRICS, RunDirectory, was_cut_off
from hpcopt.train.run.environment import environment
from hpcopt.train.run.halt import drop_stale_halt
from hpcopt.train.run.logs import RankLog
from hpcopt.train.run.record import Recorder
from hpcopt.train.run.record_reader import earlier_rows, read_tables
from hpcopt.train.run.same_job import check_same_job
from hpcopt.train.snapshot import Snapshot

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_BEATS = 20.0
ENDS = {
    StopReason.NOT_FINITE: ("diverged", 3),
    StopReason.SAVED: ("saved", 75),
    StopReason.STOPPED: ("saved", 5),
    StopReason.NOT_SAVED: ("failed", 74),
}
"""Status and exit status of a run that did not end by itself."""


class Heartbeat:
    """Touches status and lock now and then, by which other hosts know that the run is alive."""

    seldom = True

    def __init__(self, directory: RunDirectory) -> None:
        self._directory, self._last = directory, time.monotonic()

    def iteration(self, **columns: Any) -> None:
        """Touch them when the last time is long ago."""
        if time.monotonic() - self._last >= SECONDS_BETWEEN_BEATS:
            self._last = time.monotonic()
            self._directory.write_status()

    def evaluation(self, **columns: Any) -> None:
        """An iteration has just done it."""

    def rank_times(
        self, iteration: int, step: Sequence[float], waited: Sequence[float], others: Sequence[float]
    ) -> None:
        """An iteration has just done it."""


class RunOutput:
    """The run directory of one run. *Collective*: all ranks make one, rank 0 does the work with files.

    Args:
        comm: the ranks of the run.
        path: the run directory; None for a run that leaves nothing behind.
        fresh: move an earlier run in that directory aside.
        checkpoint: what is saved, and whether a run that is there goes on.
        job: the resolved job; None writes no job.toml.
        facts: what status.json says of the run (solver, model, data, ...).
        rank_facts: what this rank says of itself in environment.json (threads, device).
        understand: makes a snapshot of what a checkpoint held.

    Attributes:
        snapshot: where the run goes on; None at its first start.
        store: where it is saved; None for a run that is not.

    Raises:
        UsageError: on all ranks, when the directory cannot be used or holds a run of another job; it is as it was.
        NoValidCheckpointError: on all ranks, when all checkpoints of the run are damaged.
    """

    def __init__(
        self,
        comm: Communicator,
        path: Path | None,
        *,
        fresh: bool = False,
        checkpoint: CheckpointOptions | None = None,
        job: Job | None = None,
        facts: Mapping[str, Any] | None = None,
        rank_facts: Mapping[str, Any] | None = None,
        understand: Callable[[StoredCheckpoint], Snapshot],
    ) -> None:
        self._comm, self.path = comm, path
        self._ledger_before = comm.ledger.snapshot()
        self._directory: RunDirectory | None = None
        self._recorder: Recorder | None = None
        self._log: RankLog | None = None
        self.snapshot: Snapshot | None = None
        self.store: CheckpointStore | None = None
        if path is None:
            return
        options = checkpoint or CheckpointOptions()
        about_ranks = comm.gather_objects(dict(rank_facts or {}) | {"host": comm.host})
        with comm.together("preparing the run directory"):
            if comm.rank == 0:
                self._directory = RunDirectory.create(path, fresh=fresh, resumable=options.resume)
                drop_stale_halt(path, self._directory.owner)
        try:
            with comm.together("opening the log"):
                self._log = RankLog(path, comm.rank, comm.size)
            self._find(path, options, job, understand)
            with comm.together("preparing the run directory"):
                if comm.rank == 0:
                    self._open(path, job, dict(facts or {}), about_ranks or [])
        except HpcoptError:
            self._give_up()
            raise

    def _find(
        self,
        path: Path,
        options: CheckpointOptions,
        job: Job | None,
        understand: Callable[[StoredCheckpoint], Snapshot],
    ) -> None:
        """The checkpoint to go on from, if any, and where the next ones go. *Collective*."""
        comm, directory = self._comm, path / FOLDER
        # After --fresh, and where nothing was saved, there is nothing to be found.
        found = newest_valid(comm, directory)
        if found is not None and not options.save:
            raise UsageError(
                f"The run in {path} was saved, and checkpoint.save = false would let its record and its checkpoints "
                "part. Let it be saved, take another directory with --run-dir, or start anew with --fresh.",
                collective=True,
            )
        if found is not None:
            with comm.together("comparing the job with the one that was saved"):
                if comm.rank == 0 and job is not None:
                    check_same_job(job, path / JOB)
            self.snapshot = understand(found)
            logger.info("Going on after iteration %d.", self.snapshot.standing.iterations)
        elif comm.rank == 0 and was_cut_off(path):
            logger.warning("The run in %s was killed before it was first saved; it begins anew.", path)
        if options.save:
            self.store = CheckpointStore(comm, directory, Retention(options.keep, every=options.keep_every))

    @property
    def listeners(self) -> Sequence[Listener]:
        """The record and the sign of life, on rank 0."""
        return [self._recorder, Heartbeat(self._directory)] if self._recorder and self._directory else []

    def write_record(self) -> None:
        """Write the rows that wait, so that a run killed after a checkpoint has all rows up to there. Local."""
        if self._recorder is not None:
            self._recorder.flush()

    def finish(self, result: Result) -> None:
        """Close the record and say in status.json how the run ended. *Collective*."""
        name, exit_status = ENDS.get(result.stop, ("finished", 0))
        summary = _summary(result) | self._communication()
        self._close(status=name, exit_status=exit_status, stop_reason=result.stop.sentence, summary=summary)

    def _communication(self) -> dict[str, Any]:
        """Calls, bytes and seconds waited since the start, of all ranks and by label of this one. *Collective*."""
        rows = self._comm.ledger.rows(self._ledger_before)
        mine = [sum(r.calls for r in rows), sum(r.bytes for r in rows), sum(r.seconds_waited for r in rows)]
        calls, moved, waited = self._comm.reduce_scalars(mine)
        return {
            "communication": {"calls": calls, "bytes": moved, "seconds_waited": waited},
            "by_label": [row._asdict() for row in rows],
        }

    def fail(self, error: BaseException) -> None:
        """Say in status.json that the run failed. Local: the other ranks may be gone."""
        logger.error("The run failed: %s: %s", type(error).__name__, error)
        self._close(status="failed", exit_status=getattr(error, "exit_status", 1), stop_reason=str(error))

    def _open(self, path: Path, job: Job | None, facts: dict[str, Any], about_ranks: list[dict[str, Any]]) -> None:
        directory = self._directory
        assert directory is not None
        resumed = {} if self.snapshot is None else {"resumed_from": self.snapshot.standing.iterations}
        # First of all files: a run that is killed after any of them is then known to be one that was to be saved.
        directory.write_status(**facts, ranks=self._comm.size, saves=self.store is not None, **resumed)
        if job is not None:
            directory.write_job(job.to_toml())
        hosts = [str(rank["host"]) for rank in about_ranks]
        directory.write_environment(environment(library_name(), hosts) | {"ranks": about_ranks})
        self._recorder = Recorder(path, self._comm.size, self._earlier(path))

    def _earlier(self, path: Path) -> dict[str, list[dict[str, Any]]]:
        """What the record begins with in a run that goes on; what does not fit any more is kept in another file."""
        if self.snapshot is None or not (path / METRICS).exists():
            return {}
        done = self.snapshot.standing.iterations
        before = path / f"metrics-before-{done}.h5"
        try:
            rows = earlier_rows(path / METRICS, done, self._comm.size)
            ranks = read_tables(path / METRICS)["ranks"].dtype["seconds_step"].shape
        except UsageError as error:
            os.replace(path / METRICS, before)
            logger.warning("%s It is kept as %s; the record begins anew.", error, before.name)
            return {}
        if ranks != (self._comm.size,):
            keep_copy(path / METRICS, before)
            logger.warning("The record by rank begins anew on another number of ranks; the old one: %s.", before.name)
        return rows

    def _give_up(self) -> None:
        """Leave the directory as it was found."""
        if self._recorder is not None:
            self._recorder.close()
        if self._log is not None:
            self._log.close()
        if self._directory is not None:
            self._directory.abandon()

    def _close(self, **status: Any) -> None:
        if self._recorder is not None:
            self._recorder.close()
        if self._directory is not None:
            self._directory.write_status(**status)
            self._directory.close()
        if self._log is not None:
            logger.info("%s: %s", status["status"], status["stop_reason"])
            self._log.close()
        self._directory = self._recorder = self._log = None


def keep_copy(record: Path, kept: Path) -> None:
    """Copy a record whose rows by rank do not go on; a copy that is there is of an earlier start and has more of them.

    Raises:
        UsageError: there is no room for it; nothing is left behind.
    """
    if kept.exists():
        return
    try:
        shutil.copy2(record, kept)
    except OSError as error:
        kept.unlink(missing_ok=True)
        raise UsageError(
            f"The record {record} could not be copied to {kept.name}: {error.strerror or error}. Its times by rank do "
            "not fit another number of ranks, so the copy keeps them. Make room, or start as many ranks as before."
        ) from error


def _summary(result: Result) -> dict[str, Any]:
    """What status.json says of the whole run, and of the time of this start."""
    return {
        "initial": asdict(result.initial),
        "final": asdict(result.final),
        "best": asdict(result.best) | {"epoch": result.best_epoch},
        "iterations": result.iterations,
        "epochs": result.epochs,
        "seconds": result.seconds,
        "checkpoints": {
            "saved": result.saved,
            "not_saved": result.not_saved,
            "seconds": result.seconds_saving,
            "share": result.share_saving,
        },
        "steps": {"accepted": result.accepted, "rejected": result.rejected},
        "time": {
            "all": result.seconds_here,
            "evaluation": result.seconds_evaluating,
            "record": result.seconds_recording,
            "checkpoints": result.seconds_saving,
        },
    }
