"""The manifest of a checkpoint: which bytes belong to it, and which array lies where. Written last, as JSON.

Its text has one form only, and its own digest in it: any changed byte is noticed. Nothing here needs NumPy or HDF5.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpcopt.errors import CheckpointError, UnreadableCheckpointError, UsageError

SCHEMA = 2
"""1 had a SHA-256 of every array, which cost as much as that of the files; since 2 it is a CRC-32."""

FORMAT = "hpcopt checkpoint"
FILE_NAME = "manifest.json"
OWN = "own"
"""Group of a rank's file for what belongs to that rank alone."""


@dataclass(frozen=True)
class FileEntry:
    """One rank's file: its name in the folder of the checkpoint, its length and the SHA-256 of all of it."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Part:
    """A block of an array in the file of one rank, with a digest of its elements in row-major order.

    Attributes:
        rank: whose file holds it.
        start, count: which elements of the whole array it is, by dimension.
        digest: "crc32:" or "sha256:" (schema 1), and hexadecimal digits.
    """

    rank: int
    start: tuple[int, ...]
    count: tuple[int, ...]
    digest: str


@dataclass(frozen=True)
class Item:
    """An array, or a scalar when ``kind`` says so. ``dtype`` is NumPy's string, "str" for text."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def scalar(self) -> bool:
        """Whether it was a Python number, truth value or string."""
        return self.kind == "scalar"


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is made of.

    Attributes:
        step: its number.
        ranks: how many ranks saved it; each has a file.
        run: identity of the run it belongs to.
        created: date and time in UTC, ISO 8601.
        files: by rank.
        replicated: what was the same on all ranks, by name.
        own: what was a rank's own, by rank and name.
    """

    step: int
    ranks: int
    run: str
    created: str
    files: tuple[FileEntry, ...]
    replicated: Mapping[str, Item]
    own: tuple[Mapping[str, Item], ...]

    @property
    def bytes(self) -> int:
        """Length of all files together, without the manifest."""
        return sum(file.bytes for file in self.files)

    def text(self) -> str:
        """The manifest as it stands in its file."""
        return _text({"format": FORMAT, "schema": SCHEMA, **asdict(self)})


def rank_file(rank: int) -> str:
    """Name of a rank's file."""
    return f"rank{rank:04d}.h5"


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the checkpoint in ``directory``.

    Raises:
        CheckpointError: it is missing, damaged, or of a newer format.
    """
    return parse_manifest(read_text(directory), directory)


def read_text(directory: Path) -> bytes:
    """The manifest's bytes. Raises CheckpointError when it cannot be read."""
    try:
        return (directory / FILE_NAME).read_bytes()
    except FileNotFoundError:
        raise UnreadableCheckpointError(f"{directory} is no checkpoint: it has no {FILE_NAME}.") from None
    except OSError as error:
        check_not_too_many(error, directory)
        where = directory / FILE_NAME
        raise UnreadableCheckpointError(f"{where} cannot be read: {error.strerror or error}.") from error


def check_not_too_many(error: BaseException, path: Path) -> None:
    """Raise UsageError when a file could not be opened because too many are open, which is no damage."""
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
        raise UsageError(
            f"The checkpoint {path} cannot be read now: this process or this machine has too many files open. That is "
            "no damage. Allow more ('ulimit -n' says how many), or close some, and try again."
        ) from error


def parse_manifest(raw: bytes, directory: Path) -> Manifest:
    """The manifest with these bytes. Raises CheckpointError when they are damaged or of a newer format."""
    content = _sound(raw)
    if content is None:
        raise UnreadableCheckpointError(
            f"{directory / FILE_NAME} is damaged: its text is not what was written. 'hpcopt verify' checks all "
            "checkpoints of a run; an older one is used when one is left."
        )
    reader = _READERS.get(content["schema"])
    if reader is None:
        raise NewerSchemaError(
            f"The checkpoint {directory} has schema {content['schema']}, and this hpcopt reads up to {SCHEMA}. Use the "
            "version of hpcopt that saved it, or a later one."
        )
    return reader(content)


class NewerSchemaError(CheckpointError):
    """The checkpoint is whole but was written by a later version."""

    exit_status = 4


def _sound(raw: bytes) -> dict[str, Any] | None:
    """The content, if it is a manifest and every byte is as written. This holds for every schema, also later ones."""
    try:
        content = json.loads(raw)
        if content["format"] != FORMAT or not isinstance(content["schema"], int):
            return None
        rest = {key: value for key, value in content.items() if key != "digest"}
        return content if _text(rest).encode() == raw else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _text(content: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(_json(content).encode()).hexdigest()
    return _json({**content, "digest": digest}) + "\n"


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, allow_nan=False)


def _read_schema_1(content: Mapping[str, Any]) -> Manifest:
    return _read(content, lambda part: f"sha256:{part['sha256']}")


def _read_schema_2(content: Mapping[str, Any]) -> Manifest:
    return _read(content, lambda part: str(part["digest"]))


def _read(content: Mapping[str, Any], digest: Callable[[Mapping[str, Any]], str]) -> Manifest:
    return Manifest(
        step=content["step"],
        ranks=content["ranks"],
        run=content["run"],
        created=content["created"],
        files=tuple(FileEntry(**entry) for entry in content["files"]),
        replicated={name: _item(entry, digest) for name, entry in content["replicated"].items()},
        own=tuple({name: _item(entry, digest) for name, entry in items.items()} for items in content["own"]),
    )


def _item(entry: Mapping[str, Any], digest: Callable[[Mapping[str, Any]], str]) -> Item:
    parts = tuple(Part(p["rank"], tuple(p["start"]), tuple(p["count"]), digest(p)) for p in entry["parts"])
    return Item(entry["kind"], entry["dtype"], tuple(entry["shape"]), parts)


_READERS: dict[int, Callable[[Mapping[str, Any]], Manifest]] = {1: _read_schema_1, 2: _read_schema_2}
