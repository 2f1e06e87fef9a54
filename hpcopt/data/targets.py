"""Targets: is it classification or regression, and which label is which class. Agreed over all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hpcopt.errors import UsageError

if TYPE_CHECKING:
    from hpcopt.comm.communicator import Communicator

MAX_INFERRED_CLASSES = 100
"""A column of integers with more different values than this is taken for a quantity, not for labels."""

EXACT = 2.0**53
"""Beyond it float64 does not hold every whole number, and nobody numbers classes so."""


def integers(targets: np.ndarray) -> bool:
    """Whether there is one target a sample and all are whole numbers, none beyond what float64 holds exactly."""
    if targets.ndim != 1:
        return False
    whole = targets.dtype.kind in "biu" or bool(np.all(np.isfinite(targets) & (targets == np.round(targets))))
    return whole and not (targets.size and max(-float(targets.min()), float(targets.max())) > EXACT)


def distinct_labels(targets: np.ndarray, comm: Communicator) -> np.ndarray | None:
    """The different labels of all ranks, ascending; None if some target is not a whole number. *Collective*."""
    mine = np.unique(targets) if integers(targets) else None
    everyone = comm.allgather_objects(mine, label="labels")
    if any(labels is None for labels in everyone):
        return None
    return np.unique(np.concatenate(everyone).astype(np.float64)).astype(np.int64)


def infer_task(labels: np.ndarray | None) -> str:
    """Classification for few different whole numbers, else regression."""
    few = labels is not None and len(labels) <= MAX_INFERRED_CLASSES
    return "classification" if few else "regression"


def class_values(labels: np.ndarray, classes: int | None) -> np.ndarray:
    """The label of each class: 0 .. classes-1 if the number is known, else the labels that occur.

    Raises:
        UsageError: there is one label only, so there is nothing to tell apart.
    """
    if classes is not None:
        return np.arange(classes)
    if len(labels) < 2:
        raise UsageError(
            f"All training targets are {labels.tolist()}; classification needs at least two classes. Check"
            " data.target, or data.limit if the file is sorted by class (data.shuffle = true helps)."
        )
    return labels


def check_labels(targets: np.ndarray, rows: np.ndarray, name: str) -> None:
    """Refuse targets that cannot be labels of classes; ``rows`` and ``name`` are for messages.

    Raises:
        UsageError: there are several columns, or a target is not a whole number.
    """
    if targets.ndim != 1:
        raise UsageError(
            f"data.task is classification, but {name!r} has {targets.shape[1]} target columns; labels are"
            ' one column. Set data.target to it, or data.task = "regression".'
        )
    if not integers(targets):
        bad = int(np.argmax(~(np.isfinite(targets) & (targets == np.round(targets)))))
        raise UsageError(
            f"Row {rows[bad]} of {name!r} has the target {targets[bad]}, which is not a whole number;"
            " labels of classes are. Set data.target to the column of labels, or data.task ="
            ' "regression".'
        )


def to_classes(targets: np.ndarray, values: np.ndarray, rows: np.ndarray, name: str, known: bool) -> np.ndarray:
    """The class of each label, int64.

    Args:
        targets: labels (n,).
        values: the label of each class, ascending.
        rows: the row of each label in its file, for messages.
        name: the file, for messages.
        known: whether the classes are given rather than taken from the training set, for messages.

    Raises:
        UsageError: a target is not a whole number, or its label is none of the classes.
    """
    check_labels(targets, rows, name)
    labels = targets.astype(np.int64)
    classes = np.searchsorted(values, labels)
    wrong = (classes >= len(values)) | (values[np.minimum(classes, len(values) - 1)] != labels)
    if np.any(wrong):
        bad = int(np.argmax(wrong))
        rule = (
            f"the {len(values)} classes have the labels 0 to {len(values) - 1}. Correct the file, set data.classes,"
            " or leave data.classes out to take the labels as they come"
            if known
            else f"the training set has only the labels {_listing(values)}. Set data.classes if the set has more"
            " classes than occur in training, or take more training samples"
        )
        raise UsageError(f"Label out of range: row {rows[bad]} of {name!r} has the label {labels[bad]}, but {rule}.")
    return classes


def to_values(targets: np.ndarray) -> np.ndarray:
    """Targets of regression with two axes, (n, outputs)."""
    return targets[:, np.newaxis] if targets.ndim == 1 else targets


def _listing(values: np.ndarray) -> str:
    shown = ", ".join(map(str, values[:12].tolist()))
    return f"{shown}, ..." if len(values) > 12 else shown
