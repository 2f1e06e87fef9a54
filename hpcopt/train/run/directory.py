"""The directory of a run: created or refused as a whole, locked, and its small files written atomically.

    runs/NAME/  job.toml  environment.json  status.json  metrics.h5  log/rank0000.log  lock  checkpoints/

All of this is work of rank 0 with files. Nothing communicates: call it where an error of one rank reaches all.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from hpcopt.checkpoint.folder import FOLDER, published, set_aside
from hpcopt.errors import UsageError
from hpcopt.train.run import lock as run_lock
from hpcopt.train.run.lock import Owner, RunLock

logger = logging.getLogger(__name__)

JOB = "job.toml"
STATUS = "status.json"
ENVIRONMENT = "environment.json"
METRICS = "metrics.h5"
MARKS = (STATUS, METRICS, ENVIRONMENT, JOB)
"""Files of which one is enough to make a directory hold a run."""


def holds_run(path: Path) -> bool:
    """Whether there is a run in the directory."""
    return any(os.path.exists(path / name) for name in MARKS)


def has_checkpoints(path: Path) -> bool:
    """Whether a run in the directory was ever saved, be it that all of it is damaged."""
    directory = path / FOLDER
    return bool(published(directory) or set_aside(directory))


def was_cut_off(path: Path) -> bool:
    """Whether the run in the directory was to be saved, and was killed or failed before it was for the first time."""
    try:
        status = json.loads((path / STATUS).read_text())
    except (OSError, ValueError):
        return False
    unfinished = isinstance(status, dict) and status.get("status") in ("running", "failed")
    return unfinished and status.get("saves") is True and not has_checkpoints(path)


class RunDirectory:
    """A run directory that this process holds the lock of. Usable as a context manager, which closes it."""

    def __init__(self, path: Path, lock: RunLock, made: list[Path], moved_to: Path | None) -> None:
        """Use ``create``."""
        self.path = path
        self.moved_to = moved_to
        self._lock = lock
        self._made = made
        self._found = tuple(name for name in MARKS if os.path.exists(path / name))
        files = [name for name in (STATUS, ENVIRONMENT, JOB) if name in self._found]
        self._contents = {name: (path / name).read_bytes() for name in files}
        self._status: dict[str, Any] = {
            "status": "running",
            "stop_reason": None,
            "pid": lock.owner.pid,
            "host": lock.owner.host,
            "job": lock.owner.job,
            "started": _now(),
        }

    @classmethod
    def create(cls, path: Path, fresh: bool, resumable: bool = False) -> RunDirectory:
        """Make the directory (and its parents) and lock it.

        Args:
            path: the directory; it may exist.
            fresh: move a run that is there aside to ``NAME.before-YYYYmmdd-HHMMSS``.
            resumable: accept a run that is there, to go on with it where it was saved, or to begin it anew where it
                was killed before that.

        Raises:
            UsageError: the path is a file, the parent cannot be written to, there is a run, or another process is at
                work on it. Everything is then as it was.
        """
        path = Path(os.path.abspath(path))
        if os.path.exists(path) and not os.path.isdir(path):
            raise UsageError(f"The run directory {path} is a file. Give a directory with --run-dir.")
        run_lock.refuse_if_held(path / run_lock.FILE_NAME)
        moved_to = None
        saved = has_checkpoints(path)
        if (holds_run(path) or saved) and not (resumable and not fresh and (saved or was_cut_off(path))):
            if not fresh:
                raise _occupied(path, saved)
            moved_to = _move_aside(path)
        made: list[Path] = []
        try:
            _make_directories(path / "log", made)
            lock = RunLock.acquire(path / run_lock.FILE_NAME)
        except (OSError, UsageError) as error:
            _undo(made, path, moved_to)
            if isinstance(error, UsageError):
                raise
            raise _not_writable(path, error) from error
        if moved_to is not None:
            logger.info("The run that was in %s is now in %s.", path, moved_to)
        return cls(path, lock, made, moved_to)

    @property
    def owner(self) -> Owner:
        """This process, as the lock names it."""
        return self._lock.owner

    @property
    def status(self) -> dict[str, Any]:
        """A copy of what ``status.json`` says now, or will say after the first ``write_status``."""
        return dict(self._status)

    def write_status(self, **fields: Any) -> None:
        """Set fields of ``status.json`` (the others stay) and touch the lock.

        A write that fails is logged and does not stop the run.
        """
        self._status.update(fields, updated=_now())
        try:
            write_json(self.path / STATUS, self._status)
            self._lock.touch()
        except OSError as error:
            logger.warning("The status of the run could not be written to %s: %s.", self.path / STATUS, error.strerror)

    def write_environment(self, facts: Mapping[str, Any]) -> None:
        """Write ``environment.json``. Raises UsageError when the directory cannot be written to."""
        try:
            write_json(self.path / ENVIRONMENT, facts)
        except OSError as error:
            raise _not_writable(self.path, error) from error

    def write_job(self, text: str) -> None:
        """Write ``job.toml``, the resolved job. Raises UsageError when the directory cannot be written to."""
        try:
            write_atomically(self.path / JOB, text)
        except OSError as error:
            raise _not_writable(self.path, error) from error

    def close(self) -> None:
        """Give the lock back. Safe to call twice."""
        self._lock.release()

    def abandon(self) -> None:
        """Undo ``create``, for a run whose start failed: remove what was made, bring back what was moved aside.

        A directory that was there before keeps the files it held.
        """
        if not self._lock.ours:
            return
        log = self.path / "log"
        if log in self._made:
            shutil.rmtree(log, ignore_errors=True)
        for name in set(MARKS) - set(self._found):
            (self.path / name).unlink(missing_ok=True)
        for name, content in self._contents.items():
            with suppress(OSError):
                write_atomically(self.path / name, content)
        self._lock.release()
        _undo(self._made, self.path, self.moved_to)

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON that every reader accepts (NaN and infinities become null), atomically. Raises OSError."""
    write_atomically(path, json.dumps(plain(content), indent=2) + "\n")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8, such that readers see the old or the new content, never a part. Raises OSError."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content if isinstance(content, bytes) else content.encode())
        os.replace(unfinished, path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def plain(value: Any) -> Any:
    """The value in types JSON knows: arrays and NumPy scalars as lists and numbers, what is not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    return str(value)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _move_aside(path: Path) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    target = path.with_name(f"{path.name}.before-{stamp}")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.before-{stamp}-{number}")
    lock = None
    try:
        # Holding its lock, so that of two jobs started at the same moment one does not move the other's new run.
        lock = RunLock.acquire(path / run_lock.FILE_NAME)
        os.rename(path, target)
    except OSError as error:
        if lock is not None:
            lock.release()
        raise UsageError(
            f"The run in {path} could not be moved aside to {target.name}: {error.strerror}. --fresh needs the right "
            "to write in the parent directory; choose another directory with --run-dir."
        ) from error
    RunLock(target / run_lock.FILE_NAME, lock.owner).release()
    return target


def _make_directories(path: Path, made: list[Path]) -> None:
    """As ``mkdir -p``, noting in ``made`` what was not there before, outermost first."""
    missing = [path]
    while not os.path.exists(missing[-1].parent):
        missing.append(missing[-1].parent)
    for directory in reversed(missing):
        try:
            directory.mkdir()
        except FileExistsError:
            if not directory.is_dir():
                raise
        else:
            made.append(directory)


def _undo(made: list[Path], path: Path, moved_to: Path | None) -> None:
    for directory in reversed(made):
        try:
            directory.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            break
    if moved_to is not None and not os.path.exists(path):
        os.rename(moved_to, path)


def _occupied(path: Path, saved: bool) -> UsageError:
    why = ", of which nothing was saved to go on from"
    if saved:
        why = ", which checkpoint.resume = false keeps from going on"
    return UsageError(
        f"The directory {path} already holds a run{why}. Give another one with --run-dir, or --fresh to move the old "
        "run aside and start anew (nothing is deleted)."
    )


def _not_writable(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"The run directory {path} cannot be written: {error.strerror or error} ({error.filename or path}). It must be "
        "in a directory this process may write to; choose another one with --run-dir."
    )
