"""An HDF5 file without its arrays: all of its structure in memory, and where in the file each array belongs.

HDF5 never touches the disk. It writes headers, attributes and scalars into a sparse image, with room reserved for
every array; whoever writes the file takes the image and fills in the arrays from where they lie in memory, from the
first byte to the last. So a full disk meets plain writes, which fail cleanly: HDF5 itself can end the process when a
file cannot be closed.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from hpcopt.checkpoint.arrays import pieces

PAGE = 4096
ALIGN_FROM = 64 << 10
LIBRARY = ("v110", "v110")
"""File format of HDF5 1.10, which every HDF5 since 2016 reads; it has checksums over all metadata."""


@dataclass(frozen=True, eq=False)
class Slab:
    """What one file holds of one array.

    Attributes:
        path: its place in the file, an HDF5 path.
        data: torch or NumPy array of shape ``count``.
        dtype: NumPy's string for the element type.
        global_shape: shape of the whole array.
        start: index of the slab's first element in the whole array.
        count: shape of the slab.
        unit: of the elements.
        meaning: what the array is.
    """

    path: str
    data: Any
    dtype: str
    global_shape: tuple[int, ...]
    start: tuple[int, ...]
    count: tuple[int, ...]
    unit: str
    meaning: str


@dataclass(frozen=True)
class Scalar:
    """A number, truth value or string, kept as a data set of no dimensions."""

    path: str
    value: bool | int | float | str
    unit: str
    meaning: str


class SparseImage(io.RawIOBase):
    """A file in memory that keeps only the pages something was written to; all else reads as zeros."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        self._position = 0
        self.size = 0

    def seekable(self) -> bool:
        """Yes."""
        return True

    def readable(self) -> bool:
        """Yes."""
        return True

    def writable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a byte; positions beyond the end are allowed."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """The current position."""
        return self._position

    def truncate(self, size: int | None = None) -> int:
        """Make the file ``size`` bytes long; what is added reads as zeros and takes no memory."""
        size = self._position if size is None else size
        number, within = divmod(size, PAGE)
        self._pages = {key: page for key, page in self._pages.items() if key < number + (within > 0)}
        if number in self._pages:
            self._pages[number][within:] = bytes(PAGE - within)
        self.size = size
        return size

    def write(self, data: Any) -> int:
        """Write at the current position."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            number, within = divmod(self._position + done, PAGE)
            page = self._pages.setdefault(number, bytearray(PAGE))
            length = min(PAGE - within, len(view) - done)
            page[within : within + length] = view[done : done + length]
            done += length
        self._position += done
        self.size = max(self.size, self._position)
        return done

    def readinto(self, buffer: Any) -> int:
        """Read at the current position into ``buffer``."""
        view = memoryview(buffer).cast("B")
        data = self.at(self._position, min(self.size, self._position + len(view)))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def at(self, start: int, stop: int) -> bytes:
        """The bytes from ``start`` to before ``stop``."""
        pages = range(start // PAGE, -(-stop // PAGE))
        joined = b"".join(bytes(self._pages.get(number, bytes(PAGE))) for number in pages)
        first = pages.start * PAGE
        return joined[start - first : max(start, stop) - first]


def build_image(
    slabs: Sequence[Slab], scalars: Sequence[Scalar], attributes: Mapping[str, Any]
) -> tuple[SparseImage, list[tuple[int, Slab]]]:
    """Lay out a file. Local.

    Args:
        slabs: the arrays.
        scalars: the scalars, which are in the image afterwards.
        attributes: of the file's root.

    Returns:
        The file without its arrays, and (offset in the file, slab) for every slab that has bytes, by offset.
    """
    image = SparseImage()
    places = []
    with h5py.File(
        image, "w", libver=LIBRARY, alignment_threshold=ALIGN_FROM, alignment_interval=PAGE, meta_block_size=16 << 10
    ) as file:
        file.attrs.update(attributes)
        for scalar in scalars:
            kind = h5py.string_dtype() if isinstance(scalar.value, str) else None
            made = file.create_dataset(scalar.path, data=scalar.value, dtype=kind)
            made.attrs.update({"unit": scalar.unit, "meaning": scalar.meaning})
        for slab in slabs:
            offset = _reserve(file, slab)
            if offset is not None:
                places.append((offset, slab))
    return image, sorted(places, key=lambda place: place[0])


def _reserve(file: h5py.File, slab: Slab) -> int | None:
    """Make the data set of a slab, and of its data only a single number; returns where its bytes belong, or None."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    dtype = np.dtype(slab.dtype)
    if slab.count:
        made = file.create_dataset(slab.path, slab.count, dtype, dcpl=properties)
    else:
        # HDF5 gives no room to a data set of no dimensions before it is written to.
        made = file.create_dataset(slab.path, data=np.frombuffer(next(pieces(slab.data)), dtype).reshape(()))
    for name in ("global_shape", "start", "count"):
        made.attrs[name] = np.asarray(getattr(slab, name), dtype=np.int64)
    made.attrs.update({"unit": slab.unit, "meaning": slab.meaning})
    offset: int | None = made.id.get_offset() if slab.count else None
    return offset
