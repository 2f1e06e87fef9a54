"""Whether every byte of a checkpoint is what was written. Needs neither MPI nor HDF5; works while the run goes on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from hpcopt.checkpoint.folder import run_identity, step_of
from hpcopt.checkpoint.manifest import (
    FILE_NAME,
    FileEntry,
    Manifest,
    NewerSchemaError,
    check_not_too_many,
    parse_manifest,
    read_text,
)
from hpcopt.errors import CheckpointError

BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class Finding:
    """Something about a file of a checkpoint that is not as it should be.

    Attributes:
        path: the file, or the folder of the checkpoint.
        what: what is wrong, a phrase.
        damage: whether the checkpoint must not be used; False for a file that is none of its own.
        forbidden: whether this process may not read it, so that it may well be whole.
    """

    path: Path
    what: str
    damage: bool = True
    forbidden: bool = False

    def __str__(self) -> str:
        """Both, for a message."""
        return f"{self.path}: {self.what}"


def verify(path: Path, run: str | None = None) -> list[Finding]:
    """Compare all bytes of a checkpoint with its manifest. Local; damage is reported, never raised.

    Args:
        path: folder of the checkpoint.
        run: identity of the run it must belong to; by default the one noted beside it, if any.

    Returns:
        What is wrong, empty when all is well. Also empty when the run removed or replaced it meanwhile.

    Raises:
        UsageError: too many files are open, so that it cannot be said.
    """
    path = Path(path)
    try:
        raw = read_text(path)
        manifest = parse_manifest(raw, path)
    except CheckpointError as error:
        return manifest_findings(path, error)
    findings = folder_findings(path, manifest, run_identity(path.parent) if run is None else run)
    for file in manifest.files:
        findings += file_findings(path, file, manifest)
    return findings if not findings or _same(path, raw) else verify(path, run)


def manifest_findings(path: Path, error: CheckpointError) -> list[Finding]:
    """What it means that the manifest of ``path`` could not be read."""
    if not path.is_dir():
        return []
    if isinstance(error, NewerSchemaError):
        return [Finding(path / FILE_NAME, "was written by a later version of hpcopt and cannot be checked", False)]
    if isinstance(error.__cause__, OSError):
        return [_not_read(path / FILE_NAME, error.__cause__)]
    there = (path / FILE_NAME).exists()
    return [Finding(path / FILE_NAME, "is damaged: its text is not what was written" if there else "is missing")]


def folder_findings(path: Path, manifest: Manifest, run: str | None) -> list[Finding]:
    """What is wrong with the folder as a whole; the content of the files is not looked at."""
    findings = []
    if run is not None and manifest.run != run:
        findings.append(Finding(path, f"belongs to another run ({manifest.run}) than the one it lies in ({run})"))
    if step_of(path) not in (manifest.step, None):
        findings.append(Finding(path, f"holds step {manifest.step}, not the one in its name"))
    known = {FILE_NAME, *(file.name for file in manifest.files)}
    try:
        strangers = sorted(entry for entry in path.iterdir() if entry.name not in known)
    except OSError as error:
        check_not_too_many(error, path)
        return [_not_read(path, error)]
    return findings + [Finding(entry, "is no part of the checkpoint", damage=False) for entry in strangers]


def file_findings(path: Path, file: FileEntry, manifest: Manifest) -> list[Finding]:
    """What is wrong with one rank's file."""
    place = path / file.name
    try:
        size, digest = place.stat().st_size, _sha256(place)
    except FileNotFoundError:
        return [Finding(place, "is missing")]
    except OSError as error:
        check_not_too_many(error, path)
        return [_not_read(place, error)]
    if (size, digest) == (file.bytes, file.sha256):
        return []
    for other in manifest.files:
        if digest == other.sha256:
            return [Finding(place, f"holds what was saved as {other.name}")]
    if size != file.bytes:
        return [Finding(place, f"has {size} bytes instead of {file.bytes}")]
    return [Finding(place, "is damaged: its content is not what was written")]


def damaged(findings: list[Finding]) -> bool:
    """Whether one of the findings is damage."""
    return any(finding.damage for finding in findings)


def _not_read(path: Path, error: OSError) -> Finding:
    return Finding(path, f"cannot be read: {error.strerror or error}", forbidden=isinstance(error, PermissionError))


def _same(path: Path, raw: bytes) -> bool:
    """Whether the checkpoint is still the one whose manifest was read; a running job removes and replaces them."""
    try:
        return read_text(path) == raw
    except CheckpointError:
        return path.is_dir()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
