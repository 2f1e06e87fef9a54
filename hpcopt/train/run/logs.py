"""A log file a rank in the run directory, with rank and size in every line."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from hpcopt.errors import UsageError


class RankLog:
    """Writes the package's log to ``log/rankNNNN.log``: all of it on rank 0, warnings only on the others.

    The others' files appear with their first line, so a quiet run on many ranks leaves one file. Warnings of rank 0
    also go to standard error, unless the program that runs has arranged its logging by itself.
    """

    def __init__(self, run_dir: Path, rank: int, size: int) -> None:
        path = run_dir / "log" / f"rank{rank:04d}.log"
        try:
            path.parent.mkdir(exist_ok=True)
            self._handler = LogFile(path, delay=rank != 0, encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"the log {path} cannot be written: {error.strerror}. All ranks must be able to write to the run "
                "directory; choose one on a shared file system with --run-dir"
            ) from error
        self._handler.setLevel(logging.INFO if rank == 0 else logging.WARNING)
        form = f"%(asctime)s [rank {rank}/{size}] %(levelname)s %(name)s: %(message)s"
        self._handler.setFormatter(logging.Formatter(form))
        logger = logging.getLogger("hpcopt")
        logger.addHandler(self._handler)
        self._shown = logging.lastResort if rank == 0 and not logging.getLogger().handlers else None
        if self._shown is not None:
            logger.addHandler(self._shown)
        logger.setLevel(logging.INFO)

    def close(self) -> None:
        """Stop writing to the file."""
        logger = logging.getLogger("hpcopt")
        logger.removeHandler(self._handler)
        if self._shown is not None:
            logger.removeHandler(self._shown)
        self._handler.close()


class LogFile(logging.FileHandler):
    """A file that cannot stop a run: what it no longer takes is lost, and standard error says so once."""

    _told = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line. A file that is opened with its first line may then be impossible to open."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Of the system's refusals tell the first one; all else is a mistake in a message."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            print(f"The log {self.baseFilename} can no longer be written: {error.strerror or error}.", file=sys.stderr)
