"""What loading gives: this rank's shards of the training and the test set, and the facts for the record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Part:
    """One rank's contiguous shard of a set.

    Attributes:
        inputs: float32, shape (count, *input_shape).
        targets: int64 classes, shape (count,), or float32 values, shape (count, outputs).
        start: position of the shard's first sample in the whole set.
        total: samples of the whole set, over all ranks.
    """

    inputs: np.ndarray
    targets: np.ndarray
    start: int
    total: int

    @property
    def count(self) -> int:
        """Samples of this shard."""
        return len(self.targets)


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set as one rank holds it.

    Attributes:
        train: this rank's shard of the training set, which others may hold too; never empty.
        test: this rank's shard of the test set, maybe empty; None when there is no test set.
        task: "classification" or "regression".
        classes: number of classes; 0 for regression.
        outputs: numbers that a model must put out for each sample: the classes, or the targets.
        input_shape: shape of one sample: (features,) or (channels, height, width).
        name: the source as the user named it.
        facts: where the data came from and how they were scaled, plain values that JSON can hold.
    """

    train: Part
    test: Part | None
    task: str
    classes: int
    outputs: int
    input_shape: tuple[int, ...]
    name: str
    facts: dict[str, Any] = field(default_factory=dict)
