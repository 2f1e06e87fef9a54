"""One rank's file, written from the first byte to the last: digests are taken and the disk is kept busy meanwhile.

Every byte is hashed as it is handed to the system, not as it is read back: what the disk makes of it is noticed later.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any

from hpcopt.checkpoint.arrays import PIECE_BYTES, pieces, scalar_bytes
from hpcopt.checkpoint.digests import ArrayDigest, array_digest
from hpcopt.checkpoint.image import Scalar, Slab, SparseImage, build_image
from hpcopt.checkpoint.manifest import FORMAT, SCHEMA, FileEntry, rank_file

SYNC_BYTES = 32 << 20
"""After so many bytes the system is asked to begin with writing them to the disk."""


class Point(str, Enum):
    """Moments of a save at which tests let a rank fail or die, in their order; the last three are on rank 0."""

    OPENED = "after open"
    HALFWAY = "mid-data"
    CLOSED = "after close"
    BEFORE_MANIFEST = "before manifest"
    BEFORE_RENAME = "after manifest, before rename"
    BEFORE_SYNC = "after rename, before the parent's sync"


Passing = Callable[[Point], None]


def no_test(point: Point) -> None:
    """What happens at a point outside of tests."""


@dataclass(frozen=True)
class Written:
    """A file that is on the disk, with the digest of every array and scalar in it, by HDF5 path."""

    file: FileEntry
    digests: dict[str, str]


def write_rank_file(
    directory: Path,
    rank: int,
    slabs: Sequence[Slab],
    scalars: Sequence[Scalar],
    attributes: dict[str, Any],
    passing: Passing = no_test,
) -> Written:
    """Write a rank's file and wait until it is on the disk. Local. Raises OSError."""
    root = {"format": FORMAT, "schema": SCHEMA, "rank": rank, **attributes}
    image, places = build_image(slabs, scalars, root)
    path = directory / rank_file(rank)
    digests = {scalar.path: array_digest([scalar_bytes(scalar.value)]) for scalar in scalars}
    with HashedFile(path) as file:
        passing(Point.OPENED)
        middle = len(places) // 2
        for number, (offset, slab) in enumerate(places):
            file.copy(image, offset)
            if number == middle:
                passing(Point.HALFWAY)
            digests[slab.path] = file.append(pieces(slab.data))
        file.copy(image, image.size)
        file.sync()
    passing(Point.CLOSED)
    placed = {slab.path for _, slab in places}
    digests |= {slab.path: array_digest(pieces(slab.data)) for slab in slabs if slab.path not in placed}
    return Written(FileEntry(path.name, file.size, file.sha256), digests)


class HashedFile:
    """A new file that grows at its end. Hashing and syncing run in threads; no thread outlives the ``with`` block."""

    def __init__(self, path: Path) -> None:
        """Create the file. Raises OSError, also when it exists."""
        self.size = 0
        self._total = hashlib.sha256()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._threads = ThreadPoolExecutor(3, thread_name_prefix="hpcopt-checkpoint")
        self._syncing: Future[None] | None = None
        self._asked = 0

    @property
    def sha256(self) -> str:
        """Of all bytes so far."""
        return self._total.hexdigest()

    def append(self, blocks: Iterable[memoryview | bytes]) -> str:
        """Write blocks of bytes, and return the digest of them together. Raises OSError."""
        part = ArrayDigest()
        for block in blocks:
            # A block is not handed on before it is written and hashed, so that only one is copied at a time.
            hashing = [self._threads.submit(update, block) for update in (self._total.update, part.update)]
            try:
                self._write(memoryview(block))
            finally:
                for done in hashing:
                    done.result()
        return str(part)

    def copy(self, image: SparseImage, stop: int) -> None:
        """Write what the image holds from the current end of the file to before ``stop``. Raises OSError."""
        while self.size < stop:
            block = image.at(self.size, min(stop, self.size + PIECE_BYTES))
            self._total.update(block)
            self._write(memoryview(block))

    def sync(self) -> None:
        """Wait until all is on the disk. Raises OSError."""
        self._early_sync_is_done(wait=True)
        os.fsync(self._descriptor)

    def _write(self, block: memoryview) -> None:
        while block:
            done = os.write(self._descriptor, block)
            self.size += done
            block = block[done:]
        if self.size - self._asked >= SYNC_BYTES and self._early_sync_is_done():
            self._asked = self.size
            self._syncing = self._threads.submit(_sync_data, self._descriptor)

    def _early_sync_is_done(self, wait: bool = False) -> bool:
        """Whether no early sync is under way. Its error is raised here: the system tells it only once."""
        if self._syncing is not None and (wait or self._syncing.done()):
            self._syncing.result()
            self._syncing = None
        return self._syncing is None

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown()
        os.close(self._descriptor)


def _sync_data(descriptor: int) -> None:
    getattr(os, "fdatasync", os.fsync)(descriptor)
