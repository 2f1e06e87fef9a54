from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest

from hpcopt.analysis import tensors
from hpcopt.analysis.checkpoint import open_checkpoint
from hpcopt.analysis.tensors import change, checkpoint_summary, describe_tensor, difference, spectrum
from tests.support.saved_models import contents, network, save

FIGURES = ("elements", "norm", "mean", "min", "max", "zeros", "not_finite")


def test_figures_are_of_the_finite_elements() -> None:
    array = np.array([[3.0, -4.0, 0.0], [np.nan, np.inf, 0.0]], dtype=np.float32)
    assert describe_tensor(array) == {
        "shape": [2, 3],
        "dtype": "float32",
        "elements": 6,
        "norm": 5.0,
        "mean": -0.25,
        "min": -4.0,
        "max": 3.0,
        "zeros": 2 / 6,
        "not_finite": 2,
    }


@pytest.mark.parametrize("array", [np.zeros((0, 3)), np.array(7, dtype=np.int64), np.array([True, False])])
def test_every_type_and_size_has_figures(array: np.ndarray) -> None:
    found = describe_tensor(array)
    assert found["elements"] == array.size
    assert found["max"] == (array.max() if array.size else None)
    assert found["norm"] == math.sqrt(float((array.astype(float) ** 2).sum()))


def test_figures_do_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).standard_normal((13, 7))
    whole = describe_tensor(array)
    moved = change(array, array + 1)
    monkeypatch.setattr(tensors, "BLOCK", 10)
    assert [describe_tensor(array)[name] for name in FIGURES] == pytest.approx([whole[name] for name in FIGURES])
    assert change(array, array + 1) == pytest.approx(moved, rel=1e-13)
    assert whole["norm"] == pytest.approx(np.linalg.norm(array), rel=1e-14)


def test_sums_of_single_precision_are_taken_in_double() -> None:
    array = np.full(2_000_000, 0.1, dtype=np.float32)
    assert describe_tensor(array)["mean"] == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_a_spectrum_is_that_of_the_singular_values() -> None:
    left, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 3)))
    found = spectrum(left * [4.0, 2.0, 1.0])
    assert found is not None
    shares = np.array([4.0, 2.0, 1.0]) / 7
    assert found["largest"] == pytest.approx(4)
    assert found["smallest"] == pytest.approx(1)
    assert found["condition"] == pytest.approx(4)
    assert found["effective_rank"] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))
    assert spectrum(np.eye(4)) == {"largest": 1, "smallest": 1, "condition": 1, "effective_rank": pytest.approx(4)}
    assert spectrum(np.zeros((2, 2))) == {"largest": 0, "smallest": 0, "condition": math.inf, "effective_rank": 0}


def test_a_convolution_counts_as_the_matrix_of_its_outputs() -> None:
    kernel = np.random.default_rng(2).standard_normal((4, 3, 2, 2))
    assert spectrum(kernel) == spectrum(kernel.reshape(4, 12))


def test_vectors_and_matrices_that_are_empty_or_not_finite_have_no_spectrum() -> None:
    assert spectrum(np.ones(3)) is None
    assert spectrum(np.ones((0, 3))) is None
    assert spectrum(np.array([[1.0, np.nan]])) is None


def test_a_change_is_relative_to_the_reference() -> None:
    assert change(np.array([3.0, 4.0]), np.array([0.0, 0.5])) == {
        "relative_change": pytest.approx(math.hypot(3, 3.5) / 0.5),
        "largest_change": 3.5,
        "equal_bits": False,
    }
    assert change(np.zeros(2), np.zeros(2)) == {"relative_change": 0, "largest_change": 0, "equal_bits": True}
    assert change(np.ones(2), np.zeros(2))["relative_change"] == math.inf


def test_bits_are_compared_not_values() -> None:
    assert not change(np.array([0.0]), np.array([-0.0]))["equal_bits"]
    assert not change(np.ones(1, dtype=np.float32), np.ones(1))["equal_bits"]
    assert change(np.array([np.nan]), np.array([np.nan]))["equal_bits"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(change(np.array([np.inf]), np.array([np.inf]))["largest_change"])


def test_a_summary_is_json_with_every_tensor(tmp_path: Path) -> None:
    (path,) = save(tmp_path, {5: contents(network(1), radius=float("inf"))})
    with open_checkpoint(path) as checkpoint:
        plain = checkpoint_summary(checkpoint)
        found = checkpoint_summary(checkpoint, spectra=True)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [row["name"] for row in found["tensors"]] == checkpoint.tensor_names
    assert found["elements"] == sum(tensor.numel() for tensor in network(1).state_dict().values())
    assert found["scalars"] == {"loop/iterations": 40, "solver/radius": None}
    assert (found["step"], found["ranks"], found["which"]) == (5, 2, "latest")
    assert "spectrum" not in plain["tensors"][0]
    layers = [row["name"] for row in found["tensors"] if row["spectrum"]]
    assert layers == ["0.weight", "11.weight"]


def test_a_difference_names_what_moved_and_what_does_not_fit(tmp_path: Path) -> None:
    first, second = contents(network(1), radius=0.5, phase="local"), contents(network(1), radius=0.25)
    second["model/11/weight"] = second["model/11/weight"] * 1.5
    second["model/12/scale"] = second.pop("model/0/bias")
    second["model/1/bias"] = second["model/1/bias"][:2]
    ours, theirs = save(tmp_path, {1: first, 2: second})
    with open_checkpoint(ours) as here, open_checkpoint(theirs) as there:
        found = difference(here, there)
    moved = {row["name"]: row for row in found["tensors"]}
    assert moved["11.weight"]["relative_change"] == pytest.approx(1 / 3)
    assert [name for name, row in moved.items() if not row["equal_bits"]] == ["11.weight"]
    assert found["extra"] == ["0.bias"]
    assert found["missing"] == ["12.scale"]
    assert found["reshaped"] == [{"name": "1.bias", "shape": [3], "other_shape": [2]}]
    assert found["scalars"] == {"solver/phase": ["local", None], "solver/radius": [0.5, 0.25]}
    assert (found["other"], found["other_step"]) == (str(theirs), 2)


def test_a_checkpoint_does_not_differ_from_itself(tmp_path: Path) -> None:
    (path,) = save(tmp_path, {1: contents(network(1), radius=float("nan"))})
    with open_checkpoint(path) as checkpoint:
        found = difference(checkpoint, checkpoint)
    assert all(row["equal_bits"] and row["relative_change"] == 0 for row in found["tensors"])
    assert found["missing"] == found["extra"] == found["reshaped"] == []
    assert found["scalars"] == {}
