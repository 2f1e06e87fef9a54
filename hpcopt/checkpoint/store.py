"""Saving: one life cycle for a checkpoint, with one outcome on all ranks.

    reserve   rank 0 makes .step-00001200.<unique>.tmp
    write     every rank writes its own file there and waits until it is on the disk
    confirm   all ranks agree that all succeeded, and rank 0 learns the digests
    publish   rank 0 writes the manifest, syncs file and folder, renames the folder, syncs the parent
    point     ``latest``, and ``best`` when it is
    retain    what the policy does not keep is deleted

A process killed at any of these leaves the checkpoints that were there before as they were.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from math import prod
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from hpcopt.checkpoint import folder
from hpcopt.checkpoint.arrays import Description, check_names, describe, part_of, texts
from hpcopt.checkpoint.image import Scalar, Slab
from hpcopt.checkpoint.manifest import FILE_NAME, OWN, Item, Manifest, Part
from hpcopt.checkpoint.plan import Share, shares
from hpcopt.checkpoint.retention import Retention
from hpcopt.checkpoint.writer import Passing, Point, Written, no_test, write_rank_file
from hpcopt.errors import CheckpointError, HpcoptError, UsageError
from hpcopt.layout.partitioned import Partitioned

if TYPE_CHECKING:
    from hpcopt.comm.communicator import Communicator

logger = logging.getLogger(__name__)

Contents = Mapping[str, Any]
About = Mapping[str, Mapping[str, str]]


class Saved(NamedTuple):
    """A checkpoint that was published: where, how many bytes in all files, and the seconds it took on this rank."""

    path: Path
    bytes: int
    seconds: float


class Plan(NamedTuple):
    """What a save is about to write: values with their descriptions, by name, and who writes which block of them.

    Of a partitioned array, which is described with the replicated ones, every rank knows its own block only.
    """

    replicated: dict[str, Description]
    own: dict[str, Description]
    shares: dict[str, list[Share]]
    blocks: dict[str, Share]


Told = tuple[Written, dict[str, Description], dict[str, Share]]
"""What rank 0 learns of a rank: its file, what is its own, and its blocks of partitioned arrays."""


class CheckpointStore:
    """The folder of a run's checkpoints, for the ranks that write it. Nothing in it may be shared with another run."""

    def __init__(
        self, comm: Communicator, directory: Path, retention: Retention | None = None, passing: Passing = no_test
    ) -> None:
        """Make the folder, remove what a run that died left half-way, learn the run's identity. *Collective*.

        Args:
            comm: the ranks that save.
            directory: the folder ``checkpoints`` of a run, the same on all ranks, on a file system they share.
            retention: what is kept; by default the last two and the best.
            passing: called at each ``Point`` of a save, for tests.

        Raises:
            CheckpointError: the folder cannot be written to; on all ranks.
        """
        self.comm = comm
        self.directory = Path(directory).absolute()
        self.retention = retention or Retention()
        self._passing = passing
        run = ""
        with comm.together("opening the folder of checkpoints"), _told(self.directory, "used"):
            if comm.rank == 0:
                self.directory.mkdir(parents=True, exist_ok=True)
                folder.remove_leftovers(self.directory)
                run = folder.make_identity(self.directory)
        self.run: str = comm.broadcast_object(run)

    def save(
        self,
        step: int,
        replicated: Contents,
        own: Contents | None = None,
        about: About | None = None,
        *,
        best: bool = False,
    ) -> Saved:
        """Write and publish a checkpoint. *Collective*. The arrays must not change meanwhile.

        A checkpoint of the same step is replaced. Beside the arrays a rank needs 8 MiB for those of a device or with
        strides, and what HDF5 needs for names.

        Args:
            step: its number, not negative.
            replicated: what is the same on all ranks, by names that are HDF5 paths ("model/fc1/weight"): torch
                tensors, NumPy arrays, bool, int, float or str; and ``Partitioned`` ones, each rank's with its block.
            own: what is this rank's own, likewise; names, types and shapes may differ from rank to rank.
            about: ``{name: {"unit": ..., "meaning": ...}}`` for any of the names.
            best: whether it is the best so far.

        Raises:
            UsageError: something cannot be stored, or the ranks do not save the same; on all ranks.
            CheckpointError: it could not be written, for instance because the disk is full. On all ranks, with the
                same text; what was published before is untouched, and the run can go on.
        """
        started = perf_counter()
        own, about = own or {}, about or {}
        replicated = {k: v.to_write() if isinstance(v, Partitioned) else v for k, v in replicated.items()}
        plan = self._plan(step, replicated, own)
        unfinished = self._reserve(step)
        try:
            with self.comm.together(f"writing the checkpoint of step {step}"), self._told(step):
                slabs, scalars = self._content(plan, replicated, own, about)
                facts = {"step": step, "ranks": self.comm.size, "run": self.run}
                written = write_rank_file(unfinished, self.comm.rank, slabs, scalars, facts, self._passing)
            self._publish(step, plan, written, unfinished)
        except Exception:
            # Every rank is past its writing here: the error is raised on all of them, by ``together``.
            if self.comm.rank == 0:
                shutil.rmtree(unfinished, ignore_errors=True)
            raise
        if self.comm.rank == 0:
            self._point(step, best)
            self._delete_old()
        # No rank leaves before rank 0 is done, so that all find the folder in the same state.
        size = self.comm.reduce_scalars([written.file.bytes], label="checkpoint")[0]
        return Saved(self.directory / folder.step_name(step), int(size), perf_counter() - started)

    def _plan(self, step: int, replicated: Contents, own: Contents) -> Plan:
        with self.comm.together("preparing a checkpoint"):
            if isinstance(step, bool) or not isinstance(step, int) or step < 0:
                raise UsageError(f"step = {step!r} of a checkpoint must be a whole number, 0 or more.")
            check_names(list(replicated), reserved=OWN)
            check_names(list(own))
            ours = {name: describe(name, value) for name, value in replicated.items()}
            mine = {name: describe(name, value) for name, value in own.items()}
        self._check_agreement(step, ours)
        blocks = {name: self._block(value) for name, value in replicated.items() if isinstance(value, Partitioned)}
        cut = {name: shares(array, self.comm.size) for name, array in ours.items() if name not in blocks}
        return Plan(ours, mine, cut, blocks)

    def _block(self, value: Partitioned) -> Share:
        return Share(self.comm.rank, tuple(value.start), tuple(value.data.shape))

    def _check_agreement(self, step: int, ours: Mapping[str, Description]) -> None:
        """Raise UsageError on all ranks when they are about to save different things. *Collective*."""
        digest = hashlib.sha256(repr((step, sorted(ours.items()))).encode()).digest()
        number = float(int.from_bytes(digest[:6], "big"))
        high, low = self.comm.reduce_scalars([number, -number], "max", label="checkpoint")
        if high != -low:
            raise UsageError(
                "The ranks are about to save different things as the same on all of them: step, names, types and "
                "shapes must agree. What differs from rank to rank is given as the rank's own.",
                collective=True,
            )

    def _reserve(self, step: int) -> Path:
        path = None
        with self.comm.together(f"reserving a folder for the checkpoint of step {step}"), self._told(step):
            if self.comm.rank == 0:
                path = folder.unfinished(self.directory, step)
                path.mkdir()
        return Path(self.comm.broadcast_object(path))

    def _content(
        self, plan: Plan, replicated: Contents, own: Contents, about: About
    ) -> tuple[list[Slab], list[Scalar]]:
        """What this rank's file holds."""
        rank, slabs, scalars = self.comm.rank, [], []
        for name, array in plan.replicated.items():
            value = replicated[name]
            for share in [plan.blocks[name]] if name in plan.blocks else plan.shares[name]:
                if share.rank != rank:
                    continue
                if array.scalar:
                    scalars.append(Scalar(name, value, *texts(about, name)))
                else:
                    data = value.data if name in plan.blocks else part_of(value, share.start, share.count)
                    place = (array.shape, share.start, share.count)
                    slabs.append(Slab(name, data, array.dtype, *place, *texts(about, name)))
        for name, array in plan.own.items():
            if array.scalar:
                scalars.append(Scalar(f"{OWN}/{name}", own[name], *texts(about, name)))
            else:
                place = (array.shape, (0,) * len(array.shape), array.shape)
                slabs.append(Slab(f"{OWN}/{name}", own[name], array.dtype, *place, *texts(about, name)))
        return slabs, scalars

    def _publish(self, step: int, plan: Plan, written: Written, unfinished: Path) -> None:
        """Confirm and publish. *Collective*."""
        gathered = self.comm.gather_objects((written, plan.own, plan.blocks), label="checkpoint")
        with self.comm.together(f"publishing the checkpoint of step {step}"), self._told(step):
            if gathered is not None:
                self._passing(Point.BEFORE_MANIFEST)
                manifest = self._manifest(step, plan, gathered)
                _check_visible(unfinished, manifest)
                folder.write_synced(unfinished / FILE_NAME, manifest.text())
                folder.sync_directory(unfinished)
                self._passing(Point.BEFORE_RENAME)
                folder.publish(unfinished, self.directory / folder.step_name(step))
                self._passing(Point.BEFORE_SYNC)
                folder.sync_directory(self.directory)

    def _manifest(self, step: int, plan: Plan, gathered: list[Told]) -> Manifest:
        files = [written for written, *_ in gathered]
        replicated = {}
        for name, array in plan.replicated.items():
            blocks = [told[name] for *_, told in gathered] if name in plan.blocks else plan.shares[name]
            _check_whole(name, array, blocks)
            parts = [Part(s.rank, s.start, s.count, files[s.rank].digests[name]) for s in blocks]
            replicated[name] = _item(array, parts)
        own = []
        for rank, (written, arrays, _) in enumerate(gathered):
            digest = written.digests
            own.append({
                name: _item(array, [Part(rank, (0,) * len(array.shape), array.shape, digest[f"{OWN}/{name}"])])
                for name, array in arrays.items()
            })  # fmt: skip
        created = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        entries = tuple(written.file for written in files)
        return Manifest(step, self.comm.size, self.run, created, entries, replicated, tuple(own))

    def _point(self, step: int, best: bool) -> None:
        try:
            folder.point(self.directory, folder.LATEST, step)
            if best:
                folder.point(self.directory, folder.BEST, step)
        except OSError as error:
            logger.warning(
                "The checkpoint of step %d is published, but a pointer to it in %s could not be written: %s.",
                *(step, self.directory, error.strerror or error),
            )

    def _delete_old(self) -> None:
        """Delete what the policy does not keep. What fails is logged: it must not end the run, nor this rank alone."""
        try:
            steps = folder.published_steps(self.directory)
            kept = self.retention.survivors(steps, folder.pointed(self.directory, folder.BEST))
            for step in sorted(set(steps) - kept):
                folder.remove(self.directory / folder.step_name(step))
        except HpcoptError as error:
            logger.warning("Old checkpoints are not deleted. %s The run goes on.", error)
        except OSError as error:
            logger.warning(
                "An old checkpoint in %s could not be deleted: %s (%s). The run goes on.",
                *(self.directory, error.strerror or error, error.filename),
            )

    def _told(self, step: int) -> Any:
        return _told(self.directory / folder.step_name(step), "written")


def _check_whole(name: str, array: Description, blocks: list[Share]) -> None:
    """Raise UsageError when the blocks of an array are not all of it."""
    found, size = sum(prod(block.count) for block in blocks), prod(array.shape)
    if found != size:
        raise UsageError(
            f"The checkpoint cannot hold {name!r}: the blocks of all ranks have {found} elements, but an array of "
            f"shape {array.shape} has {size}."
        )


def _item(array: Description, parts: list[Part]) -> Item:
    return Item("scalar" if array.scalar else "array", array.dtype, array.shape, tuple(parts))


def _check_visible(path: Path, manifest: Manifest) -> None:
    """Raise CheckpointError when rank 0 does not see what the other ranks wrote."""
    for file in manifest.files:
        try:
            found = (path / file.name).stat().st_size
        except FileNotFoundError:
            found = -1
        if found != file.bytes:
            raise CheckpointError(
                f"The checkpoint {path.parent / folder.step_name(manifest.step)} could not be published: rank 0 does "
                f"not see all of {file.name}, which another rank wrote. The run directory must be on a file system "
                "that all ranks share; choose another one with --run-dir."
            )


@contextmanager
def _told(path: Path, what: str) -> Iterator[None]:
    """Errors of the operating system become a CheckpointError about ``path``."""
    try:
        yield
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise CheckpointError(
            f"The checkpoint {path} could not be {what}: {reason}. Checkpoints that were there before are as they "
            "were. It needs a file system with free space that all ranks may write to."
        ) from error
