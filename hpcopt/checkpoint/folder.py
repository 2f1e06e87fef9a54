"""The folder of a run's checkpoints: names, pointers, and moves that leave a whole set at every moment.

    checkpoints/step-00001200/     a published checkpoint
    checkpoints/step-00001200.bad  one that was found damaged, kept for a look at it
    checkpoints/.step-00001200.*.tmp, .old     on the way in or out; what a run that died left is removed at the start
    checkpoints/latest, best       small files with the name of a checkpoint: for people, and for what was best
    checkpoints/run                the identity of the run, which every checkpoint repeats

Nothing here communicates.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcopt.checkpoint.manifest import check_not_too_many, read_manifest
from hpcopt.errors import CheckpointError

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
LATEST, BEST, RUN = "latest", "best", "run"

_STEP = re.compile(r"step-(\d{8,})")
_MOVING = re.compile(r"\.(step-\d{8,})\.[0-9a-f]+\.(tmp|old)")
_HALF_WRITTEN = re.compile(rf"\.({LATEST}|{BEST}|{RUN})\.\d+")
_SET_ASIDE = re.compile(r"step-(\d{8,})\.bad(-\d+)?")


def step_name(step: int) -> str:
    """Name of a checkpoint: ``step-00001200``."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """The step a folder is named after, None when its name is another."""
    found = _STEP.fullmatch(path.name)
    return int(found[1]) if found and step_name(int(found[1])) == path.name else None


def published_steps(directory: Path) -> list[int]:
    """The steps of the published checkpoints, ascending; whether they are whole is not looked at.

    Raises:
        CheckpointError: the folder is there and cannot be looked into.
    """
    with reading(directory):
        return sorted(step for path in _entries(directory) if (step := step_of(path)) is not None and path.is_dir())


def published(directory: Path) -> list[Path]:
    """The published checkpoints, oldest first, by what the folder holds: the pointers are never asked."""
    return [directory / step_name(step) for step in published_steps(directory)]


def set_aside(directory: Path) -> list[Path]:
    """The checkpoints that were found damaged."""
    return sorted(path for path in _entries(directory) if _SET_ASIDE.fullmatch(path.name))


def unfinished(directory: Path, step: int) -> Path:
    """A new name for the folder in which a checkpoint is written."""
    return directory / f".{step_name(step)}.{uuid.uuid4().hex[:12]}.tmp"


def remove_leftovers(directory: Path) -> list[Path]:
    """Remove what a run that died left half-way; a checkpoint that was being replaced comes back.

    What cannot be removed is logged and stays: it harms nobody.

    Returns:
        What was found.
    """
    found = [path for path in _entries(directory) if _MOVING.fullmatch(path.name) or _HALF_WRITTEN.fullmatch(path.name)]
    for path in found:
        try:
            _clear(path)
        except OSError as error:
            logger.warning("What a run left in %s could not be removed: %s.", path, error.strerror or error)
    return found


def _clear(path: Path) -> None:
    match = _MOVING.fullmatch(path.name)
    if match is None:
        path.unlink()
    elif match[2] == "old" and not path.with_name(match[1]).exists() and _looks_whole(path):
        os.rename(path, path.with_name(match[1]))
    else:
        shutil.rmtree(path)


def publish(source: Path, target: Path) -> None:
    """Give a finished folder its name. Raises OSError.

    A checkpoint of the same name makes room: a whole one is kept until the new one is there, one that does not even
    look whole is set aside.
    """
    old = None
    if target.exists() and _looks_whole(target):
        old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.old")
        os.rename(target, old)
    elif target.exists():
        move_aside(target)
    try:
        os.rename(source, target)
    except OSError:
        if old is not None:
            os.rename(old, target)
        raise
    if old is not None:
        sync_directory(target.parent)
        shutil.rmtree(old, ignore_errors=True)


def move_aside(path: Path) -> Path:
    """Rename a damaged checkpoint to ``.bad``; returns its new place. Raises OSError."""
    target = path.with_name(f"{path.name}.bad")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.bad-{number}")
    os.rename(path, target)
    return target


def remove(path: Path) -> None:
    """Delete a checkpoint so that at no moment a part of it is taken for one. Raises OSError."""
    away = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    os.rename(path, away)
    shutil.rmtree(away)


def point(directory: Path, name: str, step: int) -> None:
    """Let ``latest`` or ``best`` name a checkpoint. Raises OSError."""
    _replace(directory / name, step_name(step) + "\n")


def pointed(directory: Path, name: str) -> int | None:
    """The step that ``latest`` or ``best`` names, None when there is no such file or no such checkpoint."""
    try:
        path = directory / (directory / name).read_text().strip()
    except (OSError, ValueError):
        return None
    return step_of(path) if path.parent == directory and path.is_dir() else None


def run_identity(directory: Path) -> str | None:
    """The identity of the run, from its own file or else from the newest checkpoint that tells; None when new."""
    try:
        if text := (directory / RUN).read_text().strip():
            return text
    except (OSError, ValueError):
        pass
    for path in reversed(published(directory)):
        try:
            return read_manifest(path).run
        except CheckpointError:
            continue
    return None


def make_identity(directory: Path) -> str:
    """The identity of the run, made if there is none. Raises OSError."""
    found = run_identity(directory) or uuid.uuid4().hex
    if not (directory / RUN).exists():
        _replace(directory / RUN, found + "\n")
    return found


def write_synced(path: Path, text: str) -> None:
    """Write a small file and wait until it is on the disk. Raises OSError."""
    with open(path, "wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Wait until the names in a folder are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def reading(directory: Path) -> Iterator[None]:
    """That a folder cannot be looked into becomes a CheckpointError about it."""
    try:
        yield
    except OSError as error:
        check_not_too_many(error, directory)
        raise CheckpointError(
            f"The folder {directory} cannot be looked into: {error.strerror or error}. What is in it is as it was. "
            "Give this process the permission to read it, or name another one."
        ) from error


def _entries(directory: Path) -> list[Path]:
    with reading(directory):
        try:
            return list(directory.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []


def _looks_whole(path: Path) -> bool:
    """Whether the manifest is sound and all files have their length; the content is not read."""
    try:
        return all((path / file.name).stat().st_size == file.bytes for file in read_manifest(path).files)
    except (CheckpointError, OSError):
        return False


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_synced(fresh, text)
        os.replace(fresh, path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
