"""HDF5 files: a rank reads the hyperslab of its own shard and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcopt.data.arrays import Choice, as_images, check_numbers, check_pair, choose, split_columns, squeeze_targets
from hpcopt.data.files import damaged, unreadable
from hpcopt.data.text import Target

if TYPE_CHECKING:
    import h5py

SLAB_BYTES = 2**26
"""Rows that are not consecutive are picked out of slabs of about this size, so that memory stays small."""


class Hdf5Reader:
    """One data set of inputs and one of targets (or a table with target columns) in an HDF5 file."""

    def __init__(self, path: Path, choice: Choice, target: Target) -> None:
        self.name, self._path, self._choice, self._target = str(path), path, choice, target
        with _opened(path) as file:
            inputs = file[choice.inputs]
            for key in filter(None, (choice.inputs, choice.targets)):
                check_numbers(file[key].dtype, key, self.name)
            if choice.targets is not None:
                check_pair(inputs.shape, file[choice.targets].shape, choice, self.name)
            self.rows = int(inputs.shape[0])
            self._row_bytes = max(1, int(np.prod(inputs.shape[1:])) * inputs.dtype.itemsize)
            sample = inputs[:1] if self.rows else np.empty(inputs.shape, inputs.dtype)
        self.shape: tuple[int, ...] = self._inputs_and_columns(sample)[0].shape[1:]

    def column(self, feature: int) -> str:
        """The number of the feature."""
        return f"feature {feature}"

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The given rows, in slabs from the first to the last of them."""
        with _opened(self._path) as file:
            inputs, columns = self._inputs_and_columns(self._pick(file[self._choice.inputs], rows))
            if self._choice.targets is None:
                return inputs, columns
            return inputs, squeeze_targets(self._pick(file[self._choice.targets], rows))

    def _inputs_and_columns(self, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._choice.targets is None:
            return split_columns(array, self._target, self.name)
        return as_images(array), np.empty(0)

    def _pick(self, dataset: Any, rows: np.ndarray) -> np.ndarray:
        if not len(rows):
            return np.empty((0, *dataset.shape[1:]), dataset.dtype)
        first, stop = int(rows[0]), int(rows[-1]) + 1
        if stop - first == len(rows):
            return np.asarray(dataset[first:stop])
        step = max(1, SLAB_BYTES // self._row_bytes)
        out = np.empty((len(rows), *dataset.shape[1:]), dataset.dtype)
        for start in range(first, stop, step):
            low, high = np.searchsorted(rows, [start, start + step])
            if high > low:
                out[low:high] = dataset[start : min(start + step, stop)][rows[low:high] - start]
        return out


def open_hdf5(path: Path, inputs: str | None, target: Target) -> tuple[Hdf5Reader, Hdf5Reader | None]:
    """The training set of an HDF5 file, and its test set if it has one; nothing is read yet.

    Raises:
        UsageError: the file is missing or damaged, or has no data sets that fit.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, item: Any) -> None:
        # A soft check by attribute: h5py itself is imported only when a file is opened.
        if hasattr(item, "dtype") and item.shape:
            shapes[name] = item.shape

    with _opened(path) as file:
        file.visititems(note)
    choices = [choose(shapes, part, inputs, target, str(path)) for part in ("train", "test")]
    train, test = [Hdf5Reader(path, choice, target) if choice else None for choice in choices]
    assert train is not None  # choose has raised if there is none
    return train, test


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file open for reading; its failures become errors of the user."""
    import h5py

    if not path.is_file():
        raise unreadable(path, FileNotFoundError(2, "No such file"))
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        raise damaged(path, error) from error
