"""Going on from a checkpoint, on as many ranks as saved it or on another number.

The newest checkpoint of which every byte is right is used. A damaged one is renamed to ``step-00001200.bad``, never
deleted, and the one before it is tried.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hpcopt.checkpoint.folder import move_aside, published, run_identity, set_aside
from hpcopt.checkpoint.manifest import Manifest, parse_manifest, read_text
from hpcopt.checkpoint.stored import StoredCheckpoint
from hpcopt.checkpoint.verify import Finding, damaged, file_findings, folder_findings, manifest_findings, verify
from hpcopt.errors import CheckpointError, NoValidCheckpointError, UsageError

if TYPE_CHECKING:
    from hpcopt.comm.communicator import Communicator

logger = logging.getLogger(__name__)


class Restored(NamedTuple):
    """What a checkpoint held.

    Attributes:
        step: number of the step after which it was saved.
        ranks: how many ranks saved it.
        replicated: what was the same on all ranks, by name: NumPy arrays (or the arrays given as ``into``) and
            scalars.
        own: what was this rank's own, by name; None when another number of ranks saved it.
    """

    step: int
    ranks: int
    replicated: dict[str, Any]
    own: dict[str, Any] | None


def newest_valid(comm: Communicator, directory: Path) -> StoredCheckpoint | None:
    """The newest checkpoint in ``directory`` that is whole; None when there never was one. *Collective*.

    All bytes are read, the files shared out among the ranks. A damaged checkpoint is set aside with a warning.

    Raises:
        NoValidCheckpointError: there are checkpoints, but none is whole; on all ranks.
        CheckpointError: the newest one was written by a later version of hpcopt or may not be read, or the ranks do
            not see the same files; on all ranks.
    """
    directory = Path(directory).absolute()
    passed: set[Path] = set()
    while (path := _newest(comm, directory, passed)) is not None:
        findings = _findings(comm, path)
        if not damaged(findings):
            return _open(comm, path)
        _check_permitted(findings)
        passed.add(path)
        with comm.together("setting a damaged checkpoint aside"):
            if comm.rank == 0:
                _set_aside(path, findings)
    some = comm.broadcast_object(bool(passed or set_aside(directory)) if comm.rank == 0 else None)
    if not some:
        return None
    raise NoValidCheckpointError(
        f"None of the checkpoints in {directory} is whole; the damaged ones are kept as *.bad ('hpcopt verify' says "
        "what is wrong with each). Bring back a copy of one under its name without .bad, or start anew with --fresh, "
        "which moves the run aside and deletes nothing.",
        collective=True,
    )


def restore(comm: Communicator, checkpoint: StoredCheckpoint | Path, into: Mapping[str, Any] | None = None) -> Restored:
    """Read a checkpoint on every rank of ``comm``, whatever number of ranks saved it. *Collective*.

    Args:
        comm: the ranks that go on.
        checkpoint: what ``newest_valid`` found, or the folder of a checkpoint, the same on all ranks.
        into: torch tensors (on any device) or NumPy arrays to fill in place, or blocks of them (``Partitioned``), by
            name; the rest comes as new arrays.

    Raises:
        UsageError: an array to fill has another type or shape than what was saved, or nothing has its name; on all
            ranks.
        CheckpointError: a file is missing or damaged; on all ranks. Arrays given as ``into`` then hold nothing of use.
    """
    into = into or {}
    with comm.together("reading a checkpoint"):
        stored = checkpoint if isinstance(checkpoint, StoredCheckpoint) else StoredCheckpoint(Path(checkpoint))
        with stored:
            replicated = {name: _read(stored, name, into.get(name)) for name in stored.names()}
            own = None
            if stored.ranks == comm.size:
                own = {name: stored.own(comm.rank, name) for name in stored.own_names(comm.rank)}
            if lacking := sorted(set(into) - set(replicated)):
                raise UsageError(
                    f"The checkpoint {stored.path} holds nothing under the name {lacking[0]!r}. It belongs to another "
                    "model or method: go on with the options it was made with, or start anew."
                )
    return Restored(stored.step, stored.ranks, replicated, own)


def _read(stored: StoredCheckpoint, name: str, target: Any) -> Any:
    if target is None:
        return stored.replicated(name)
    stored.read_into(name, target)
    return target


def _newest(comm: Communicator, directory: Path, passed: set[Path]) -> Path | None:
    found = None
    with comm.together("looking for checkpoints"):
        if comm.rank == 0:
            found = next((path for path in reversed(published(directory)) if path not in passed), None)
    path: Path | None = comm.broadcast_object(found)
    return path


def _findings(comm: Communicator, path: Path) -> list[Finding]:
    """What is wrong with a checkpoint, the same on all ranks; every rank reads a part of the files. *Collective*."""
    found: tuple[Manifest | None, list[Finding]] = (None, [])
    with comm.together("checking a checkpoint"):
        if comm.rank == 0:
            found = _manifest(path)
    manifest, findings = comm.broadcast_object(found)
    if manifest is None:
        return list(findings)
    with comm.together("checking a checkpoint"):
        mine = [
            finding
            for number, file in enumerate(manifest.files)
            if number % comm.size == comm.rank
            for finding in file_findings(path, file, manifest)
        ]
    findings += [finding for part in comm.allgather_objects(mine) for finding in part]
    return _confirmed(comm, path, findings) if damaged(findings) else findings


def _manifest(path: Path) -> tuple[Manifest | None, list[Finding]]:
    try:
        manifest = parse_manifest(read_text(path), path)
    except CheckpointError as error:
        return None, manifest_findings(path, error)
    return manifest, folder_findings(path, manifest, run_identity(path.parent))


def _confirmed(comm: Communicator, path: Path, findings: list[Finding]) -> list[Finding]:
    """Damage as rank 0 sees it: a rank whose machine does not see the files is no reason to set them aside."""
    with comm.together("checking a checkpoint"):
        if comm.rank == 0 and not damaged(verify(path)):
            raise CheckpointError(
                f"A rank cannot read what rank 0 can ({next(f for f in findings if f.damage)}). The run directory must "
                "be on a file system that all ranks share; choose another one with --run-dir."
            )
    return findings


def _check_permitted(findings: list[Finding]) -> None:
    """What may not be read is not known to be damaged, and going on from an older one would lose work."""
    for finding in findings:
        if finding.forbidden:
            raise CheckpointError(
                f"The newest checkpoint cannot be used as it is: {finding}. Give this process the permission to read "
                "it, or move the checkpoint away to go on from the one before it.",
                collective=True,
            )


def _set_aside(path: Path, findings: list[Finding]) -> None:
    what = "; ".join(str(finding) for finding in findings if finding.damage)
    try:
        target = move_aside(path)
    except OSError as error:
        logger.warning("A damaged checkpoint is left out, but could not be renamed (%s): %s.", error.strerror, what)
    else:
        logger.warning("A damaged checkpoint is now %s, and the one before it is used: %s.", target, what)


def _open(comm: Communicator, path: Path) -> StoredCheckpoint:
    with comm.together("opening a checkpoint"):
        stored = StoredCheckpoint(path)
    return stored
