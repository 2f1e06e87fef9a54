"""Readers: the rows of a set on demand, so that a rank reads and decodes its own shard only.

Letters: n rows asked for, k target columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


class Reader(Protocol):
    """A table of samples. Making a reader finds out the number of rows; the samples are read by ``read``."""

    @property
    def name(self) -> str:
        """The file or set, for messages."""
        ...

    @property
    def rows(self) -> int:
        """Number of samples."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the inputs of one sample."""
        ...

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs (n, *shape) and targets (n,) or (n, k) of the given rows, which ascend, in the file's own type."""
        ...

    def column(self, feature: int) -> str:
        """How a user would call this feature (flat number from 0), for messages."""
        ...


@dataclass(frozen=True, eq=False)
class Arrays:
    """Samples that are in memory already."""

    name: str
    inputs: np.ndarray
    targets: np.ndarray

    @property
    def rows(self) -> int:
        """Number of samples."""
        return len(self.inputs)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the inputs of one sample."""
        return self.inputs.shape[1:]

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The given rows."""
        return self.inputs[rows], self.targets[rows]

    def column(self, feature: int) -> str:
        """The number of the feature."""
        return f"feature {feature}"


@dataclass(frozen=True, eq=False)
class Images:
    """The rows of a table seen as images of bytes (or of the given type)."""

    table: Reader
    shape: tuple[int, ...]
    dtype: Any = np.uint8

    @property
    def name(self) -> str:
        """The table's name."""
        return self.table.name

    @property
    def rows(self) -> int:
        """Number of samples."""
        return self.table.rows

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The given rows, reshaped."""
        inputs, targets = self.table.read(rows)
        return inputs.reshape(len(rows), *self.shape).astype(self.dtype), targets

    def column(self, feature: int) -> str:
        """The number of the pixel."""
        return f"pixel {feature}"


@dataclass
class Source:
    """An opened set with what is known about it before anything is read.

    Attributes:
        train: rows for training, and for the test set when it is split off.
        test: the set's own test set, or None.
        task: None when it must be inferred from the targets.
        classes: None when they must be inferred from the labels.
        test_size: samples or fraction to set aside when the user says nothing and there is no ``test``.
        split_seed: the seed of that default split and of ``ordered``; None for the run's seed.
        ordered: deal the rows out in a drawn order, since the file is sorted in some way.
        train_size: rows used for training out of those that the test set leaves; None for all.
        standardize: the default of the key of this name; ``standardize_targets`` follows it.
        sharded: the readers hold this rank's own samples, not the whole set.
        facts: for the record.
    """

    train: Reader
    test: Reader | None = None
    task: str | None = None
    classes: int | None = None
    test_size: float | int | None = None
    split_seed: int | None = 0
    ordered: bool = False
    train_size: int | None = None
    standardize: bool = True
    sharded: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


def read_rows(reader: Reader, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read rows in any order: they are fetched in ascending order, as files like it, and put in place."""
    if len(rows) < 2 or np.all(rows[1:] > rows[:-1]):
        return reader.read(rows)
    order = np.argsort(rows)
    inputs, targets = reader.read(rows[order])
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return inputs[place], targets[place]
