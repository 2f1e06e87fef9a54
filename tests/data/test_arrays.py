"""npz and mat files: arrays are found by their usual names, encoded images are decoded, pickles are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from hpcopt.data.arrays import as_images, choose, decode_residual, open_mat, open_npz
from hpcopt.data.reader import Arrays
from hpcopt.errors import UsageError
from tests.support.datafiles import encode_residual

X, Y = np.arange(12.0).reshape(6, 2), np.arange(6)


def npz(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "set.npz", **arrays)
    return folder / "set.npz"


def content(arrays: Arrays | None) -> tuple[list[object], list[object]]:
    assert arrays is not None
    return arrays.inputs.tolist(), arrays.targets.tolist()


@pytest.mark.parametrize(
    ("inputs", "targets"), [("inputs", "targets"), ("X", "y"), ("images", "labels"), ("x_train", "y_train"),
                            ("train_data", "train_labels"), ("Features", "Target")]
)  # fmt: skip
def test_usual_names_are_found(tmp_path: Path, inputs: str, targets: str) -> None:
    train, test = open_npz(npz(tmp_path, **{targets: Y, inputs: X, "other": Y}), None, None)
    assert content(train) == (X.tolist(), Y.tolist())
    assert test is None


def test_a_test_set_in_the_same_file_is_found(tmp_path: Path) -> None:
    path = npz(tmp_path, x_train=X, y_train=Y, x_test=-X[:2], y_test=Y[:2])
    for inputs, target in ((None, None), ("x_train", "y_train")):
        train, test = open_npz(path, inputs, target)
        assert content(train) == (X.tolist(), Y.tolist())
        assert content(test) == ((-X[:2]).tolist(), [0, 1])


def test_names_given_by_the_user_come_first(tmp_path: Path) -> None:
    path = npz(tmp_path, x=X, y=Y, a=2 * X, b=3 * Y)
    assert content(open_npz(path, "a", "b")[0]) == ((2 * X).tolist(), (3 * Y).tolist())


@pytest.mark.parametrize(("target", "column"), [(None, 1), ("last", 1), ("first", 0), (-2, 0)])
def test_a_single_array_holds_its_targets_as_columns(tmp_path: Path, target: object, column: int) -> None:
    train, _ = open_npz(npz(tmp_path, table=X), None, target)  # type: ignore[arg-type]
    assert content(train) == (X[:, [1 - column]].tolist(), X[:, column].tolist())


@pytest.mark.parametrize(
    ("arrays", "inputs", "target", "message"),
    [
        ({"x": X, "y": Y}, "z", None, r"data.inputs is 'z', which is no array of"),
        ({"x": X, "labels": Y}, None, "lables", r"did you mean 'labels'\? It holds x 6x2, labels 6"),
        ({"a": X, "b": Y}, None, None, "no array named inputs, x, images"),
        ({"x": X, "b": Y}, None, None, "no array named targets, labels or y"),
        ({"x": X, "y": Y[:5]}, None, None, r"shape \(6, 2\) and the targets 'y' shape \(5,\)"),
        ({"x": X, "y": np.zeros((6, 2, 2))}, None, None, "the targets at most two"),
        ({"x": X[:, 0], "y": Y}, None, None, "the inputs at least two axes"),
        ({"x": X, "y": np.array(list("ababab"))}, None, None, "'y' of .* is of type <U1; only real numbers"),
        ({"x": 1j * X, "y": Y}, None, None, "'x' of .* is of type complex128; only real numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], inputs: str | None, target: str | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        open_npz(npz(tmp_path, **arrays), inputs, target)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="damaged: Object arrays cannot be loaded"):
        open_npz(npz(tmp_path, x=np.array([{}, {}]), y=np.arange(2)), None, None)


@pytest.mark.parametrize("keep", [0.5, 0.02])
@pytest.mark.parametrize("kind", ["npz", "mat"])
def test_a_file_cut_off_is_damaged(tmp_path: Path, kind: str, keep: float) -> None:
    path = tmp_path / f"set.{kind}"
    arrays = {"x": np.random.default_rng(0).normal(size=(500, 4)), "y": np.arange(500)}
    np.savez_compressed(path, **arrays) if kind == "npz" else savemat(path, arrays, do_compression=True)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(UsageError, match="is damaged"):
        (open_npz if kind == "npz" else open_mat)(path, None, None)


def test_encoded_images_come_back(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), np.uint8)
    np.testing.assert_array_equal(decode_residual(encode_residual(images)), images)
    train, _ = open_npz(npz(tmp_path, residual=encode_residual(images), labels=np.arange(5)), None, None)
    np.testing.assert_array_equal(train.inputs, images)


def test_images_get_their_channels_first() -> None:
    assert as_images(np.zeros((7, 28, 28), np.uint8)).shape == (7, 1, 28, 28)
    assert as_images(np.zeros((7, 32, 30, 3))).shape == (7, 3, 32, 30)
    assert as_images(np.zeros((7, 3, 32, 32))).shape == (7, 3, 32, 32)
    assert as_images(np.zeros((7, 28, 28), np.float32)).shape == (7, 28, 28), "a series of vectors, maybe"


def test_mat_files_with_samples_in_columns_are_turned(tmp_path: Path) -> None:
    savemat(tmp_path / "set.mat", {"Y": X.T, "C": np.arange(18.0).reshape(3, 6)})
    train, _ = open_mat(tmp_path / "set.mat", "Y", "C")
    assert content(train) == (X.tolist(), np.arange(18.0).reshape(3, 6).T.tolist())


def test_mat_row_vectors_of_labels_are_columns(tmp_path: Path) -> None:
    savemat(tmp_path / "set.mat", {"x": X, "y": Y[:, None]})
    assert content(open_mat(tmp_path / "set.mat", None, None)[0]) == (X.tolist(), Y.tolist())


def test_mat_version_7_3_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "set.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124, b" ") + b"\x00\x02IM" + bytes(64))
    with pytest.raises(UsageError, match=r"version 7.3, which stores arrays transposed. Save it with"):
        open_mat(tmp_path / "set.mat", None, None)


def test_a_name_for_training_is_not_taken_for_the_test_set() -> None:
    shapes = {"x": (6, 2), "y": (6,)}
    assert choose(shapes, "test", None, None, "f") is None
    assert choose(shapes, "test", "x", "y", "f") is None
