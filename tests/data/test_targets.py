"""Labels and classes, classification or regression."""

from __future__ import annotations

import numpy as np
import pytest

from hpcopt.comm.communicator import Communicator
from hpcopt.data.targets import class_values, distinct_labels, infer_task, to_classes
from hpcopt.errors import UsageError


@pytest.mark.parametrize(
    ("targets", "task"),
    [
        (np.array([0, 1, 2]), "classification"),
        (np.array([-1.0, 1.0]), "classification"),
        (np.arange(100), "classification"),
        (np.arange(101), "regression"),
        (np.array([0.0, 0.5]), "regression"),
        (np.array([0.0, 1e19]), "regression"),
        (np.array([0, 2**60]), "regression"),
        (np.zeros((4, 2)), "regression"),
    ],
)
def test_the_task_follows_from_the_targets(comm: Communicator, targets: np.ndarray, task: str) -> None:
    assert infer_task(distinct_labels(targets, comm)) == task


def test_labels_become_classes_in_ascending_order() -> None:
    values = class_values(np.array([-1, 1, 5]), None)
    assert to_classes(np.array([5.0, -1.0, 1.0]), values, np.arange(3), "f", False).tolist() == [2, 0, 1]
    assert class_values(np.array([1]), 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("targets", "values", "known", "message"),
    [
        ([0, 3], [0, 1, 2], True, r"row 11 of 'f' has the label 3, but the 3 classes have the labels 0 to 2"),
        ([0, -1], [0, 1, 2], True, r"has the label -1"),
        ([1, 2], [1, 5], False, r"has the label 2, but the training set has only the labels 1, 5. Set data.classes"),
        ([0, 0.5], [0, 1], False, r"Row 11 of 'f' has the target 0.5, which is not a whole number"),
        ([[0, 1], [1, 0]], [0, 1], False, r"has 2 target columns"),
    ],
)
def test_a_label_out_of_range_is_named(targets: list[float], values: list[int], known: bool, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        to_classes(np.array(targets), np.array(values), np.array([10, 11]), "f", known)


def test_one_label_is_nothing_to_learn() -> None:
    with pytest.raises(UsageError, match=r"All training targets are \[3\]"):
        class_values(np.array([3]), None)
