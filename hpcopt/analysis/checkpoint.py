"""Opening a checkpoint for study: the parameters, the state of the method and where the run stood, as NumPy arrays.

Needs neither MPI nor torch, and works while the run publishes new checkpoints and deletes old ones.
"""

from __future__ import annotations

import logging
import operator
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from hpcopt.checkpoint import names
from hpcopt.checkpoint.folder import (
    BEST,
    FOLDER,
    LATEST,
    pointed,
    published,
    published_steps,
    reading,
    step_name,
    step_of,
)
from hpcopt.checkpoint.manifest import FILE_NAME, Item, NewerSchemaError, read_manifest
from hpcopt.checkpoint.stored import StoredCheckpoint
from hpcopt.checkpoint.verify import Finding, verify
from hpcopt.errors import CheckpointError, NoValidCheckpointError, UnreadableCheckpointError, UsageError

logger = logging.getLogger(__name__)

ATTEMPTS = 5
PAUSE_SECONDS = 0.05

MOST_HELD_FILES = 256
"""Files that stay open, so that a deleted checkpoint can be read; a process may have 1024 on most systems.

Of a checkpoint of more ranks, the other files are opened and closed as ``StoredCheckpoint`` does it."""

CHOICES = (LATEST, BEST)
"""What is meant by a word: the point the run delivers, and the best one up to there."""


class Published(NamedTuple):
    """A checkpoint that a run has now; ``bytes`` and ``created`` are None when its manifest cannot be read.

    ``created`` is UTC, ISO 8601. ``best`` says that the run's best checkpoint is this one.
    """

    step: int
    path: Path
    bytes: int | None
    created: str | None
    best: bool


class Checkpoint:
    """One checkpoint, open for reading; every value is compared with its digest when it is read.

    Its files are held open, so it stays readable when the run deletes it meanwhile. Usable as a context manager.

    Attributes:
        stored: everything in it, by the names of ``hpcopt.checkpoint.names``.
        which: ``"latest"``, or ``"best"`` when ``parameters`` are those of the best point up to this checkpoint.
    """

    def __init__(self, stored: StoredCheckpoint, which: str = LATEST) -> None:
        """Use ``open_checkpoint``, or ``checkpoint`` of a run."""
        self.stored = stored
        self.which = which
        self._paths = _tensor_paths(stored, names.MODEL)
        if which == BEST:
            # Without a group of its own the best point is the point itself; the group has what training changes.
            self._paths |= _tensor_paths(stored, names.BEST)

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, step {self.step}, {len(self._paths)} tensors)"

    @property
    def path(self) -> Path:
        """The folder of the checkpoint."""
        return self.stored.path

    @property
    def step(self) -> int:
        """Number of the step after which it was saved."""
        return self.stored.step

    @property
    def tensor_names(self) -> list[str]:
        """Names of the parameters and buffers, as in ``state_dict()``; numbers in them in the order of numbers."""
        return sorted(self._paths, key=_natural)

    def describe(self, name: str) -> Item:
        """Type and shape of a parameter or buffer. Raises KeyError for a name that is not there."""
        return self.stored.describe(self._paths[name])

    def tensor(self, name: str) -> np.ndarray:
        """One parameter or buffer, read anew.

        Raises:
            KeyError: there is none of this name.
            UnreadableCheckpointError: it is damaged; the text names the file.
        """
        with _unreadable():
            found: np.ndarray = self.stored.replicated(self._paths[name])
        return found

    @cached_property
    def parameters(self) -> dict[str, np.ndarray]:
        """All parameters and buffers by their names in ``state_dict()``; read once. Raises as ``tensor``."""
        return {name: self.tensor(name) for name in self.tensor_names}

    @cached_property
    def state(self) -> dict[str, Any]:
        """State of the method, the same on all ranks: arrays and scalars by key. Raises as ``tensor``."""
        return self._group(names.SOLVER)

    @cached_property
    def progress(self) -> dict[str, Any]:
        """Where the run stood: iterations, work, best figures, by key. Raises as ``tensor``."""
        return self._group(names.LOOP)

    def scalars(self) -> dict[str, bool | int | float | str]:
        """Scalars of the method and of where the run stood, by path, as ``solver/radius``. Raises as ``tensor``."""
        groups = (f"{names.SOLVER}/", f"{names.LOOP}/")
        with _unreadable():
            return {path: value for path, value in sorted(self.stored.scalars.items()) if path.startswith(groups)}

    def close(self) -> None:
        """Close the files; what is read later opens them again, if they are still there."""
        self.stored.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _group(self, group: str) -> dict[str, Any]:
        paths = names.in_group(group, self.stored.names())
        with _unreadable():
            return {path.partition("/")[2]: self.stored.replicated(path) for path in paths}


def open_checkpoint(path: str | os.PathLike[str], which: str = LATEST) -> Checkpoint:
    """Open a checkpoint, or the newest whole one of a run.

    Args:
        path: the folder of a checkpoint, a run directory or its folder ``checkpoints``.
        which: ``"latest"`` for the point the run delivers, ``"best"`` for the best one up to this checkpoint.

    Raises:
        UsageError: there is no checkpoint.
        CheckpointError: it is damaged (``exit_status`` 4).
    """
    check_choice(which)
    place = Path(os.path.abspath(path))
    if is_checkpoint(place):
        return _open(place, which)
    with reading(place):
        if place.name in CHOICES and place.is_file():
            return find_checkpoint(place.parent, place.name)
        return find_checkpoint(place / FOLDER if (place / FOLDER).is_dir() else place, which)


def is_checkpoint(path: Path) -> bool:
    """Whether ``path`` means one checkpoint and not a run."""
    with reading(path):
        return step_of(path) is not None or (path / FILE_NAME).exists()


def find_checkpoint(directory: Path, which: str | int = LATEST) -> Checkpoint:
    """Open a checkpoint in the folder ``checkpoints`` of a run.

    Args:
        directory: the folder.
        which: the number of a step; or ``"latest"`` for the newest whole checkpoint (all bytes are read, a damaged
            one is left out with a warning); or ``"best"`` for the parameters of the best point up to there.

    Raises:
        UsageError: there is no checkpoint, or none of this step.
        CheckpointError: it is damaged, or all are (``exit_status`` 4).
    """
    if not isinstance(which, str):
        return _open(directory / step_name(operator.index(which)), LATEST)
    check_choice(which)
    damaged: dict[Path, Finding] = {}
    for attempt in range(ATTEMPTS):
        # All were deleted while they were looked at, or the only one is being replaced.
        time.sleep(PAUSE_SECONDS * (attempt > 0))
        if (stored := _newest_whole(directory, damaged)) is not None:
            return Checkpoint(stored, which)
        if damaged and not set(published(directory)) - damaged.keys():
            break
    raise _none_found(directory, damaged)


def published_checkpoints(directory: Path) -> list[Published]:
    """The checkpoints in the folder ``checkpoints`` of a run, oldest first; whether they are whole is not looked at."""
    found = []
    best = pointed(directory, BEST)
    for path in published(directory):
        step = int(step_of(path) or 0)
        try:
            manifest = read_manifest(path)
        except CheckpointError:
            if path.is_dir():
                found.append(Published(step, path, None, None, step == best))
        else:
            found.append(Published(step, path, manifest.bytes, manifest.created, step == best))
    return found


def check_choice(which: object) -> None:
    """Raise UsageError when ``which`` is not a word for a checkpoint."""
    if which not in CHOICES:
        raise UsageError(
            f"There is no checkpoint {which!r}: say 'latest' or 'best'. One of a certain step is named by its folder, "
            f"as in {FOLDER}/{step_name(1200)}, and in Python by the number of the step."
        )


def _open(path: Path, which: str) -> Checkpoint:
    if not path.is_dir():
        steps = published_steps(path.parent)
        there = f"It has those of the steps {', '.join(map(str, steps))}." if steps else "It has none."
        raise UsageError(f"There is no checkpoint {path.name} in {path.parent}. {there}")
    with _unreadable():
        stored = _Held(path)
    # Of a damaged checkpoint the tensors that are whole can be read: the others say what is wrong.
    with suppress(CheckpointError):
        stored.hold()
    return Checkpoint(stored, which)


class _Held(StoredCheckpoint):
    """A checkpoint that can be read after it was deleted."""

    def hold(self) -> None:
        """Open its files; none stays open where the process may not have so many. Raises CheckpointError."""
        self._held = range(min(self.ranks, MOST_HELD_FILES))
        try:
            for rank in self._held:
                self._dataset("/", rank)
        except UsageError:
            self._held = ()
            self.close()
        except CheckpointError:
            self.close()
            raise


def _newest_whole(directory: Path, damaged: dict[Path, Finding]) -> StoredCheckpoint | None:
    """The newest checkpoint of which every byte is right; notes in ``damaged`` what is wrong with those before it."""
    for path in reversed(published(directory)):
        if path in damaged:
            continue
        stored = _held(path)
        if wrong := next((finding for finding in verify(path) if finding.damage), None):
            damaged[path] = wrong
            logger.warning("A damaged checkpoint is left out, and the one before it is used: %s.", wrong)
        elif stored is not None:
            return stored
        if stored is not None:
            stored.close()
    return None


def _held(path: Path) -> StoredCheckpoint | None:
    try:
        stored = _Held(path)
        stored.hold()
    except NewerSchemaError:
        raise
    except CheckpointError:
        # It was deleted a moment ago, or it is damaged, which the verification says.
        return None
    return stored


def _none_found(directory: Path, damaged: dict[Path, Finding]) -> CheckpointError | UsageError:
    if damaged:
        first = next(iter(damaged.values()))
        return NoValidCheckpointError(
            f"None of the checkpoints in {directory} is whole: {first}. 'hpcopt verify' says what is wrong with each. "
            "What is readable in one of them can be had by giving its own folder."
        )
    if steps := published_steps(directory):
        return UnreadableCheckpointError(
            f"The checkpoint {directory / step_name(steps[-1])} cannot be opened. 'hpcopt verify' says what is wrong."
        )
    return UsageError(
        f"There is no checkpoint in {directory}. Give a run that has saved one (the keys of [checkpoint] in the job "
        "file say when it does), or the folder of a checkpoint."
    )


def _tensor_paths(stored: StoredCheckpoint, group: str) -> dict[str, str]:
    """Where the tensors of a group lie, by their names in ``state_dict()``."""
    paths = names.in_group(group, stored.names())
    return {names.tensor_name(path): path for path in paths if not stored.describe(path).scalar}


@contextmanager
def _unreadable() -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        if error.exit_status == UnreadableCheckpointError.exit_status:
            raise
        raise UnreadableCheckpointError(str(error)) from error


def _natural(name: str) -> list[Any]:
    """Sorts ``layers.10`` behind ``layers.9``: words and numbers of a name, by turns."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name, flags=re.ASCII)]
