"""Loading on one rank: scaling, classes, facts for the record, and data that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from hpcopt.comm.communicator import Communicator
from hpcopt.data.dataset import DataSet
from hpcopt.data.load import load
from hpcopt.data.options import DataOptions
from hpcopt.errors import UsageError
from tests.support.datafiles import labelled, write_csv, write_idx, write_mnist


def from_table(comm: Communicator, folder: Path, table: Any, header: str | None = None, **keys: Any) -> DataSet:
    path = write_csv(folder / "set.csv", np.asarray(table), header)
    return load(DataOptions(str(path), **keys), comm, 0)


def test_mnist_files_become_scaled_images_with_classes(comm: Communicator, tmp_path: Path) -> None:
    content = write_mnist(tmp_path)
    data = load(DataOptions("mnist", root=str(tmp_path), batch=7), comm, 0)
    assert data.test is not None
    pixels = content["train-images-idx3-ubyte"].astype(float)
    np.testing.assert_allclose(data.train.inputs[:, 0], (pixels - pixels.mean()) / pixels.std(), atol=1e-6)
    test = content["t10k-images-idx3-ubyte"]
    np.testing.assert_allclose(data.test.inputs[:, 0], (test - pixels.mean()) / pixels.std(), atol=1e-6)
    assert data.facts["input_mean"] == pytest.approx([pixels.mean() / 255])
    assert (data.train.targets.dtype, data.classes, data.outputs) == (np.int64, 10, 10)
    assert data.input_shape == (1, 4, 5)
    raw = load(DataOptions("mnist", root=str(tmp_path), standardize=False), comm, 0)
    np.testing.assert_allclose(raw.train.inputs[:, 0], pixels / 255, rtol=1e-6)


def test_what_needs_images_is_refused_for_tables(comm: Communicator, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'data\.augment is "crop_flip", which is for images'):
        from_table(comm, tmp_path, [[1.0, 0], [2, 1]], augment="crop_flip")
    with pytest.raises(UsageError, match=r'data\.standardize is "image"'):
        from_table(comm, tmp_path, [[1.0, 0], [2, 1]], standardize="image")


def test_regression_scales_its_targets_by_the_training_set(comm: Communicator, tmp_path: Path) -> None:
    table = np.column_stack([np.arange(50.0), 3 * np.arange(50.0) + 7.5])
    data = from_table(comm, tmp_path, table, test=10)
    assert data.test is not None
    assert (data.task, data.classes, data.outputs) == ("regression", 0, 1)
    assert data.train.targets.shape == (40, 1)
    assert data.train.targets.mean() == pytest.approx(0, abs=1e-6)
    assert data.train.targets.std() == pytest.approx(1, abs=1e-6)
    back = data.test.targets[:, 0] * data.facts["target_scale"][0] + data.facts["target_mean"][0]
    np.testing.assert_allclose(back, table[40:, 1], rtol=1e-6)
    raw = from_table(comm, tmp_path, table, standardize_targets=False)
    np.testing.assert_allclose(raw.train.targets[:, 0], table[:, 1])
    assert abs(raw.train.inputs).max() < 2
    assert from_table(comm, tmp_path, table, standardize=False).train.targets.max() == 154.5


def test_the_inputs_may_be_the_targets(comm: Communicator, tmp_path: Path) -> None:
    """As they are scaled, whatever the set's own targets are; training and test set alike."""
    write_mnist(tmp_path)
    data = load(DataOptions("mnist", root=str(tmp_path), target="inputs", batch=7), comm, 0)
    assert (data.task, data.classes, data.outputs, data.facts["target"]) == ("regression", 0, 20, "inputs")
    for part in (data.train, data.test):
        assert part is not None
        np.testing.assert_array_equal(part.targets, part.inputs.reshape(part.count, 20))
    table = from_table(comm, tmp_path, [[1.0, 4, 0], [3, 2, 1]], target="inputs", standardize=False)
    assert table.train.targets.tolist() == [[1, 4], [3, 2]]


def test_labels_are_named_in_the_facts(comm: Communicator, tmp_path: Path) -> None:
    data = from_table(comm, tmp_path, [[1.0, 5], [2, -1], [3, 5]], standardize="global")
    assert data.train.targets.tolist() == [1, 0, 1]
    assert data.facts["labels"] == [-1, 5]
    assert data.facts["task_inferred"]
    assert "labels" not in from_table(comm, tmp_path, [[1.0, 0], [2, 1]]).facts


def test_classes_may_be_more_than_occur(comm: Communicator, tmp_path: Path) -> None:
    data = from_table(comm, tmp_path, [[1.0, 5], [2, 1]], classes=8)
    assert (data.classes, data.outputs, data.train.targets.tolist()) == (8, 8, [5, 1])


def test_numbers_in_half_precision_are_taken_without_a_warning(comm: Communicator, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float16)
    np.savez(tmp_path / "set.npz", x=x, y=np.arange(30) % 3)
    data = load(DataOptions(str(tmp_path / "set.npz"), standardize=False), comm, 0)
    assert data.train.inputs.tolist() == x.astype(np.float32).tolist()


@pytest.mark.parametrize("kind", ["h5", "npz", "mat"])
def test_array_files_of_every_kind_hold_the_same_samples(comm: Communicator, tmp_path: Path, kind: str) -> None:
    x, y = np.random.default_rng(0).normal(size=(30, 4)), np.random.default_rng(1).normal(size=(30, 2))
    path = tmp_path / f"set.{kind}"
    if kind == "h5":
        with h5py.File(path, "w") as file:
            file["x"], file["y"] = x, y
    else:
        np.savez(path, x=x, y=y) if kind == "npz" else savemat(path, {"x": x, "y": y})
    data = load(DataOptions(str(path), test=0.5, standardize=False), comm, 0)
    assert data.test is not None
    assert data.train.total + data.test.total == 30
    together = np.concatenate([data.train.inputs, data.test.inputs])
    np.testing.assert_array_equal(np.sort(together, axis=0), np.sort(x.astype(np.float32), axis=0))
    assert data.outputs == 2


def test_peaks_and_the_other_experiments_use_raw_values(comm: Communicator) -> None:
    data = load(DataOptions("peaks"), comm, 3)
    assert abs(data.train.inputs).max() > 2.9
    assert data.facts["standardize"] == "none"
    scaled = load(DataOptions("peaks", standardize=True), comm, 3)
    assert scaled.train.targets.std() == pytest.approx(1, abs=1e-6)


def test_facts_are_plain_values(comm: Communicator, tmp_path: Path) -> None:
    data = from_table(comm, tmp_path, labelled(20), "label,x1,x2,x3", test=5, batch=4)
    facts = json.loads(json.dumps(data.facts))
    assert facts == data.facts
    assert facts["source"].endswith("set.csv")
    assert (facts["train_samples"], facts["test_samples"], facts["standardize"]) == (15, 5, "feature")


def test_arrays_are_ready_for_torch(comm: Communicator, tmp_path: Path) -> None:
    """Own, writable memory in rows: torch.from_numpy warns of anything else."""
    write_mnist(tmp_path)
    for options in (DataOptions("mnist", root=str(tmp_path)), DataOptions("peaks"), DataOptions("digits")):
        data = load(options, comm, 0)
        for part in filter(None, (data.train, data.test)):
            for array in (part.inputs, part.targets):
                assert array.flags.writeable
                assert array.flags.c_contiguous


@pytest.mark.parametrize(
    ("bad", "keys", "message"),
    [
        ("nan", {}, r"Row 2 of .* \(counted from 0\) has nan in column 'b'; training needs finite numbers"),
        ("-inf", {}, r"has -inf in column 'b'"),
        ("1e39", {}, r"has 1e\+39 in column 'b'; training needs finite numbers, also as float32"),
        ("nan", {"target": "b"}, r"Row 2 of .* has nan in the target"),
        ("oops", {}, r"Line 4, column 1 of .* is 'oops', which is not a number"),
    ],
)
def test_what_is_not_a_finite_number_is_named(
    comm: Communicator, tmp_path: Path, bad: str, keys: dict[str, Any], message: str
) -> None:
    (tmp_path / "set.csv").write_text(f"a,b,c\n1,2,0\n3,4,1\n5,{bad},0\n7,8,1\n")
    with pytest.raises(UsageError, match=message):
        load(DataOptions(str(tmp_path / "set.csv"), **keys), comm, 0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"batch": 21}, "data.batch is 21, but the training set has only 20 samples"),
        ({"batch": 11, "limit": 10}, "has only 10 samples"),
        ({"classes": 2}, "Label out of range: row .* has the label 2, but the 2 classes have the labels 0 to 1"),
        ({"task": "classification", "target": "x1"}, "is not a whole number"),
        ({"task": "classification", "target": ["label", "x1"]}, "has 2 target columns"),
        ({"limit": 5}, "All training targets are \\[0\\]"),
        ({"test": 7}, "Label out of range: row 1[34] of .* only the labels 0, 1"),
        ({"standardize": "channel"}, "without channels"),
    ],
)
def test_options_that_do_not_fit_the_data_are_refused(
    comm: Communicator, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    """Sorted by class: 7 of label 0, 7 of label 1 and 6 of label 2."""
    with pytest.raises(UsageError, match=message):
        from_table(comm, tmp_path, labelled(20), "label,x1,x2,x3", **keys)


def test_a_label_out_of_range_in_an_image_file_is_named(comm: Communicator, tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.array([0, 1, 2, 10, 4, 5, 6, 7, 8, 9]))
    with pytest.raises(UsageError, match=r"row 3 of .* has the label 10, but the 10 classes have the labels 0 to 9"):
        load(DataOptions("mnist", root=str(tmp_path)), comm, 0)


def test_targets_of_another_width_in_the_test_file_are_refused(comm: Communicator, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(9, 2))
    np.savez(tmp_path / "a.npz", x=x, y=x)
    np.savez(tmp_path / "b.npz", x=x, y=x[:, :1])
    with pytest.raises(UsageError, match="has 2 targets a sample, the test set 1"):
        load(DataOptions(str(tmp_path / "a.npz"), test=str(tmp_path / "b.npz")), comm, 0)
