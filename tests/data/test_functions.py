"""The regression sets of scientific computing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from hpcopt.data.functions import open_burgers, open_cdr, open_peaks, peaks
from hpcopt.errors import UsageError


def test_peaks_is_matlabs_function() -> None:
    """At the origin 3/e - e^-1/3, and the extremes of the surface that MATLAB shows: about 8.1 and -6.6."""
    assert peaks(np.zeros((1, 2)))[0, 0] == pytest.approx(3 / np.e - 1 / (3 * np.e))
    grid = np.stack(np.meshgrid(*[np.linspace(-3, 3, 601)] * 2), axis=-1).reshape(-1, 2)
    assert peaks(grid).max() == pytest.approx(8.106, abs=1e-3)
    assert peaks(grid).min() == pytest.approx(-6.551, abs=1e-3)


def test_points_of_peaks_fill_the_square_and_depend_on_the_seed() -> None:
    source = open_peaks(1)
    points, values = source.train.read(np.arange(2000))
    assert source.test is not None
    assert source.test.rows == 1000
    assert abs(points).max() <= 3
    assert abs(points.mean(0)).max() < 0.15
    np.testing.assert_array_equal(values, peaks(points))
    assert not np.isin(source.test.read(np.arange(1000))[0], points).any()
    assert (open_peaks(2).train.read(np.arange(2000))[0] != points).all()


def test_cdr_has_samples_in_columns(tmp_path: Path) -> None:
    y, c = np.arange(55 * 800.0).reshape(55, 800), np.arange(72 * 800.0).reshape(72, 800)
    (tmp_path / "pde").mkdir()
    savemat(tmp_path / "pde" / "CDR_Data.mat", {"Y": y, "C": c})
    source = open_cdr(tmp_path)
    inputs, targets = source.train.read(np.array([5]))
    assert (inputs[0].tolist(), targets[0].tolist()) == (y[:, 5].tolist(), c[:, 5].tolist())
    savemat(tmp_path / "pde" / "CDR_Data.mat", {"Y": y, "D": c})
    with pytest.raises(UsageError, match="it must hold Y and C"):
        open_cdr(tmp_path)


def test_burgers_pairs_every_point_with_its_value(tmp_path: Path) -> None:
    x, t = np.linspace(-1, 1, 4), np.linspace(0, 0.5, 3)
    savemat(tmp_path / "burgers_shock.mat", {"x": x[:, None], "t": t[:, None], "usol": np.add.outer(10 * x, t)})
    inputs, targets = open_burgers(tmp_path).train.read(np.arange(12))
    np.testing.assert_allclose(targets[:, 0], 10 * inputs[:, 0] + inputs[:, 1])
    savemat(tmp_path / "burgers_shock.mat", {"x": x[:, None], "t": t[:, None], "usol": np.zeros((3, 4))})
    with pytest.raises(UsageError, match="a row for each x and a column for each t"):
        open_burgers(tmp_path)
