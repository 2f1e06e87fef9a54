"""The file ``halt`` in a run directory, by which a run is asked to stop where nobody can send it a signal.

An empty one (``touch halt``) asks what a signal asks: save, and be started again. The one of ``hpcopt stop`` asks for
the end: it names the process it was meant for, so that it stops no later start but that of the same job requeued.
"""

from __future__ import annotations

import getpass
import json
import logging
import socket
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from hpcopt.train.run.directory import write_json
from hpcopt.train.run.lock import FILE_NAME, Owner, of_an_earlier_start, read_owner

logger = logging.getLogger(__name__)

HALT = "halt"
"""Name of the file in the run directory."""


@dataclass(frozen=True)
class Halt:
    """What a halt file asks.

    Attributes:
        ends: the run is not to be started again by a job script: ``hpcopt stop``, not an empty file.
        after_checkpoint: only when it is saved anyway.
        by: who asked, as ``user@host``.
        when: the time, UTC, ISO 8601.
        owner: the process that was asked; None when it is not known.
    """

    ends: bool = False
    after_checkpoint: bool = False
    by: str = ""
    when: str = ""
    owner: Owner | None = None


def write_halt(directory: Path, after_checkpoint: bool = False) -> Halt:
    """Ask the run that is going on in ``directory`` to end; an earlier request is replaced. Raises OSError."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    halt = Halt(True, after_checkpoint, f"{_user()}@{socket.gethostname()}", now, read_owner(directory / FILE_NAME))
    write_json(directory / HALT, asdict(halt))
    return halt


def read_halt(directory: Path) -> Halt | None:
    """What the halt file asks, None without one. A file that ``hpcopt stop`` has not written counts as empty."""
    try:
        content = json.loads((directory / HALT).read_text())
        owner = content.pop("owner")
        return Halt(**content, owner=None if owner is None else Owner(**owner))
    except (IsADirectoryError, PermissionError, ValueError, TypeError, KeyError, AttributeError):
        return Halt()
    except OSError:
        return None


def remove_halt(directory: Path) -> None:
    """Remove the halt file if there is one; a failure is logged."""
    try:
        (directory / HALT).unlink(missing_ok=True)
    except OSError as error:
        logger.warning("The file %s could not be removed: %s.", directory / HALT, error.strerror)


def drop_stale_halt(directory: Path, owner: Owner) -> None:
    """Remove what was asked of an earlier start, now that ``owner`` holds the lock.

    Who asked a job to end does not want it to go on after it was requeued, so that request stays.
    """
    halt = read_halt(directory)
    if halt is None or halt.owner == owner:
        return
    if halt.ends and halt.owner is not None and of_an_earlier_start(halt.owner):
        logger.warning("The run was asked to end by %s before this job was requeued: it ends.", halt.by)
        return
    logger.warning("The file %s was meant for an earlier start; it is removed and the run goes on.", directory / HALT)
    remove_halt(directory)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
