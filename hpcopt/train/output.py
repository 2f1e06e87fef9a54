"""Where a run leaves its traces: the run directory with record, log and status, opened and closed by all ranks."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpcopt.comm.communicator import Communicator
from hpcopt.comm.mpi_library import library_name
from hpcopt.errors import HpcoptError
from hpcopt.solvers.solver import StopReason
from hpcopt.train.environment import environment
from hpcopt.train.logs import RankLog
from hpcopt.train.loop import Listener, Result
from hpcopt.train.record import Recorder
from hpcopt.train.run_directory import RunDirectory

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_BEATS = 20.0


class Heartbeat:
    """Touches status and lock now and then, by which other hosts know that the run is alive."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory, self._last = directory, time.monotonic()

    def iteration(self, **columns: Any) -> None:
        """Touch them when the last time is long ago."""
        if time.monotonic() - self._last >= SECONDS_BETWEEN_BEATS:
            self._last = time.monotonic()
            self._directory.write_status()

    def evaluation(self, **columns: Any) -> None:
        """An iteration has just done it."""

    def rank_times(self, iteration: int, step: Sequence[float], waited: Sequence[float]) -> None:
        """An iteration has just done it."""


class RunOutput:
    """The run directory of one run. *Collective*: all ranks make one, rank 0 does the work with files.

    Args:
        comm: the ranks of the run.
        path: the run directory; None for a run that leaves nothing behind.
        fresh: move an earlier run in that directory aside.
        job: text of job.toml; None writes no such file.
        facts: what status.json says of the run (solver, model, data, ...).
        rank_facts: what this rank says of itself in environment.json (threads, device).

    Raises:
        UsageError: on all ranks, when the directory cannot be used; nothing is left behind then.
    """

    def __init__(
        self,
        comm: Communicator,
        path: Path | None,
        *,
        fresh: bool = False,
        job: str | None = None,
        facts: Mapping[str, Any] | None = None,
        rank_facts: Mapping[str, Any] | None = None,
    ) -> None:
        self._comm = comm
        self._ledger_before = comm.ledger.snapshot()
        self._directory: RunDirectory | None = None
        self._recorder: Recorder | None = None
        self._log: RankLog | None = None
        self.path = path
        if path is None:
            return
        about_ranks = comm.gather_objects(dict(rank_facts or {}) | {"host": comm.host})
        with comm.together("preparing the run directory"):
            if comm.rank == 0:
                self._open(path, fresh, job, dict(facts or {}), about_ranks or [])
        try:
            with comm.together("opening the log"):
                self._log = RankLog(path, comm.rank, comm.size)
        except HpcoptError:
            if self._recorder is not None:
                self._recorder.close()
            if self._directory is not None:
                self._directory.abandon()
            raise

    @property
    def listeners(self) -> Sequence[Listener]:
        """The record and the sign of life, on rank 0."""
        return [self._recorder, Heartbeat(self._directory)] if self._recorder and self._directory else []

    def finish(self, result: Result) -> None:
        """Close the record and say in status.json how the run ended. *Collective*."""
        diverged = result.stop is StopReason.NOT_FINITE
        rows = self._comm.ledger.rows(self._ledger_before)
        mine = [sum(r.calls for r in rows), sum(r.bytes for r in rows), sum(r.seconds_waited for r in rows)]
        calls, moved, waited = self._comm.reduce_scalars(mine)
        self._close(
            status="diverged" if diverged else "finished",
            exit_status=3 if diverged else 0,
            stop_reason=result.stop.sentence,
            summary={
                "initial": asdict(result.initial),
                "final": asdict(result.final),
                "best": asdict(result.best) | {"epoch": result.best_epoch},
                "iterations": result.iterations,
                "epochs": result.epochs,
                "seconds": result.seconds,
                "steps": {"accepted": result.accepted, "rejected": result.rejected},
                "communication": {"calls": calls, "bytes": moved, "seconds_waited": waited},
                "by_label": [row._asdict() for row in rows],
            },
        )

    def fail(self, error: BaseException) -> None:
        """Say in status.json that the run failed. Local: the other ranks may be gone."""
        logger.error("The run failed: %s: %s", type(error).__name__, error)
        self._close(status="failed", exit_status=getattr(error, "exit_status", 1), stop_reason=str(error))

    def _open(
        self, path: Path, fresh: bool, job: str | None, facts: dict[str, Any], about_ranks: list[dict[str, Any]]
    ) -> None:
        directory = RunDirectory.create(path, fresh=fresh)
        try:
            if job is not None:
                directory.write_job(job)
            hosts = [str(rank["host"]) for rank in about_ranks]
            directory.write_environment(environment(library_name(), hosts) | {"ranks": about_ranks})
            self._recorder = Recorder(path, self._comm.size)
            directory.write_status(**facts, ranks=self._comm.size)
        except BaseException:
            directory.abandon()
            raise
        self._directory = directory

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
