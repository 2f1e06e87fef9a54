"""A published checkpoint, read by one process: whole arrays from the files of all ranks, every digest checked."""

from __future__ import annotations

from collections.abc import Container, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from hpcopt.checkpoint.arrays import check_target, put, regions, scalar_bytes
from hpcopt.checkpoint.digests import ArrayDigest
from hpcopt.checkpoint.manifest import OWN, Item, Manifest, Part, check_not_too_many, rank_file, read_manifest
from hpcopt.errors import UnreadableCheckpointError
from hpcopt.layout.partitioned import Partitioned

MOST_OPEN_FILES = 64
"""Files of ranks held open at once; beyond that the one that was used longest ago is closed."""

Value = Any
"""A NumPy array, or the bool, int, float or str that was saved."""


class StoredCheckpoint:
    """A checkpoint in its folder. Usable as a context manager, which closes its files. No method communicates.

    Attributes:
        path: the folder.
        manifest: which files and arrays it is made of.
    """

    def __init__(self, path: Path) -> None:
        """Read the manifest; the arrays are read, and their digests checked, when they are asked for.

        Raises:
            CheckpointError: there is no checkpoint in ``path``, its manifest is damaged, or it is of a newer format.
        """
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path)
        self._files: dict[int, h5py.File] = {}
        """By rank, the one that was used longest ago first."""
        self._held: Container[int] = ()
        """Ranks whose files stay open until ``close``."""

    @property
    def step(self) -> int:
        """Number of the step after which it was saved."""
        return self.manifest.step

    @property
    def ranks(self) -> int:
        """How many ranks saved it."""
        return self.manifest.ranks

    @property
    def run(self) -> str:
        """Identity of the run it belongs to."""
        return self.manifest.run

    @property
    def created(self) -> str:
        """When it was saved: UTC, ISO 8601."""
        return self.manifest.created

    def names(self) -> list[str]:
        """Names of what was the same on all ranks, arrays and scalars."""
        return sorted(self.manifest.replicated)

    def own_names(self, rank: int) -> list[str]:
        """Names of what was rank ``rank``'s own."""
        return sorted(self._own_items(rank))

    @cached_property
    def scalars(self) -> dict[str, bool | int | float | str]:
        """The scalars that were the same on all ranks. Raises CheckpointError when they cannot be read."""
        return {name: self.replicated(name) for name, item in self.manifest.replicated.items() if item.scalar}

    def describe(self, name: str) -> Item:
        """Type, shape and parts of what was the same on all ranks. Raises KeyError for a name that is not there."""
        return self.manifest.replicated[name]

    def replicated(self, name: str) -> Value:
        """An array or scalar that was the same on all ranks, whole.

        Raises:
            KeyError: nothing was saved under this name.
            CheckpointError: a file is missing, or its content is not what was saved.
            UsageError: too many files are open in this process.
        """
        return self._value(name, self.manifest.replicated[name])

    def own(self, rank: int, name: str) -> Value:
        """An array or scalar that was rank ``rank``'s own. Raises as ``replicated``."""
        return self._value(f"{OWN}/{name}", self._own_items(rank)[name])

    def read_into(self, name: str, target: Any) -> None:
        """As ``replicated``, into a torch tensor (on any device) or NumPy array, with 16 MiB of other memory at most.

        Given a ``Partitioned``, only its block is kept, however the array was spread when it was saved; all files that
        hold a piece of it are read, since a digest is of all that a rank wrote.

        Raises:
            KeyError: no array was saved under this name.
            UsageError: ``target`` has another type or shape; it is as it was.
            CheckpointError: a file is missing or damaged; ``target`` then holds nothing of use.
        """
        self._fill(name, self.manifest.replicated[name], name, target)

    def close(self) -> None:
        """Close the files; they open again when something is read."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def __enter__(self) -> StoredCheckpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _own_items(self, rank: int) -> Mapping[str, Item]:
        if not 0 <= rank < self.ranks:
            raise KeyError(f"rank {rank}: the checkpoint {self.path} was saved by {self.ranks} ranks")
        return self.manifest.own[rank]

    def _value(self, path: str, item: Item) -> Value:
        if item.scalar:
            return self._scalar(path, item)
        array = np.empty(item.shape, np.dtype(item.dtype))
        self._read(path, item, Partitioned(array, item.shape, (0,) * array.ndim))
        return array

    def _fill(self, path: str, item: Item, name: str, target: Any) -> None:
        if item.scalar:
            raise KeyError(f"{name} is a scalar in {self.path}, not an array")
        check_target(name, target, item.dtype, item.shape)
        if not isinstance(target, Partitioned):
            target = Partitioned(target, item.shape, (0,) * len(item.shape))
        self._read(path, item, target)

    def _scalar(self, path: str, item: Item) -> bool | int | float | str:
        (part,) = item.parts
        dataset = self._dataset(path, part.rank)
        try:
            value = dataset.asstr()[()] if item.dtype == "str" else dataset[()].item()
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise self._damaged(part.rank, path, f"it cannot be read ({_first_line(error)})") from error
        digest = ArrayDigest.like(part.digest)
        digest.update(scalar_bytes(value))
        if str(digest) != part.digest:
            raise self._damaged(part.rank, path, "its value is not the one that was saved")
        found: bool | int | float | str = value
        return found

    def _read(self, path: str, item: Item, target: Partitioned) -> None:
        size = sum(int(np.prod(part.count, dtype=np.int64)) for part in item.parts)
        if size != int(np.prod(item.shape, dtype=np.int64)):
            raise UnreadableCheckpointError(f"The manifest of {self.path} does not say where all of {path!r} is.")
        for part in item.parts:
            if _meets(part, target):
                self._read_part(path, item, part, target)

    def _read_part(self, path: str, item: Item, part: Part, target: Partitioned) -> None:
        dataset = self._dataset(path, part.rank)
        if dataset.shape != part.count or dataset.dtype.str != item.dtype:
            raise self._damaged(part.rank, path, f"it has shape {dataset.shape} instead of {part.count}")
        digest = ArrayDigest.like(part.digest)
        for region in regions(part.count, dataset.dtype.itemsize):
            try:
                block = np.asarray(dataset[region or ()])
            except (OSError, RuntimeError) as error:
                raise self._damaged(part.rank, path, f"it cannot be read ({_first_line(error)})") from error
            digest.update(block.reshape(-1).view(np.uint8).data)
            first = [index.start + begin for index, begin in zip(region, part.start, strict=True)]
            put(target.data, target.start, block, first)
        if str(digest) != part.digest:
            raise self._damaged(part.rank, path, "its values are not those that were saved")

    def _dataset(self, path: str, rank: int) -> h5py.Dataset:
        try:
            found = self._file(rank)[path]
        except (OSError, RuntimeError, KeyError) as error:
            check_not_too_many(error, self.path)
            raise self._damaged(rank, path, f"it cannot be opened ({_first_line(error)})") from error
        return found

    def _file(self, rank: int) -> h5py.File:
        file = self._files.pop(rank, None)
        if file is None:
            loose = [other for other in self._files if other not in self._held]
            if len(loose) >= MOST_OPEN_FILES and rank not in self._held:
                self._files.pop(loose[0]).close()
            # A published file is never written again, so it needs no lock, which some file systems cannot give.
            file = h5py.File(self.path / rank_file(rank), "r", locking=False)
        self._files[rank] = file
        return file

    def _damaged(self, rank: int, path: str, what: str) -> UnreadableCheckpointError:
        return UnreadableCheckpointError(
            f"The checkpoint {self.path} is damaged at {path!r} in {rank_file(rank)}: {what}. 'hpcopt verify' checks "
            "all checkpoints of a run; an older one is used when one is left."
        )


def _meets(part: Part, target: Partitioned) -> bool:
    """Whether a part of an array and a block of it have elements in common; so has a number with itself."""
    spans = zip(part.start, part.count, target.start, target.data.shape, strict=True)
    return all(max(a, b) < min(a + n, b + m) for a, n, b, m in spans)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
