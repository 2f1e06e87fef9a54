"""Regression sets of the experiments in scientific computing: cdr, burgers and peaks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpcopt.data.arrays import load_mat
from hpcopt.data.files import damaged, find_set
from hpcopt.data.reader import Arrays, Source
from hpcopt.random import uniforms


def open_cdr(root: Path) -> Source:
    """The convection-diffusion-reaction surrogate: 55 reaction parameters to 72 observations, 800 samples.

    File CDR_Data.mat with Y (55 x 800, inputs) and C (72 x 800, targets). The order and so the split are drawn from
    the run's seed: 400 samples to train, 200 to test; 200 are left for validation, as in E. Newman, J. Chung,
    M. Chung, L. Ruthotto, "slimTrain", SIAM J. Sci. Comput. 44(4), 2022, doi 10.1137/21M1452512.
    """
    (path,) = find_set(root, "cdr", [("CDR_Data.mat",)])
    content = load_mat(path)
    if not {"Y", "C"} <= set(content) or content["Y"].shape[1:] != content["C"].shape[1:]:
        raise damaged(path, "it must hold Y and C with one sample a column")
    samples = Arrays(str(path), content["Y"].T, content["C"].T)
    return Source(
        samples,
        None,
        "regression",
        0,
        test_size=200,
        split_seed=None,
        ordered=True,
        train_size=400,
        standardize=False,
        facts={"files": [str(path)]},
    )


def open_burgers(root: Path) -> Source:
    """A solution of Burgers' equation: (x, t) to u on a grid of 256 x 100 points; a fifth of them is the test set.

    File burgers_shock.mat with x, t and usol (x by t), viscosity 0.01/pi.
    """
    (path,) = find_set(root, "burgers", [("burgers_shock.mat",)])
    content = load_mat(path)
    if not {"x", "t", "usol"} <= set(content) or content["usol"].shape != (content["x"].size, content["t"].size):
        raise damaged(path, "it must hold x, t and usol with a row for each x and a column for each t")
    x, t = np.meshgrid(content["x"].ravel(), content["t"].ravel(), indexing="ij")
    samples = Arrays(str(path), np.stack([x.ravel(), t.ravel()], axis=1), content["usol"].reshape(-1, 1))
    return Source(
        samples, None, "regression", 0, test_size=0.2, ordered=True, standardize=False, facts={"files": [str(path)]}
    )


def peaks(points: np.ndarray) -> np.ndarray:
    """MATLAB's function ``peaks`` at points (n, 2); returns (n, 1), float64."""
    x, y = points[:, 0], points[:, 1]
    first = 3 * (1 - x) ** 2 * np.exp(-(x**2) - (y + 1) ** 2)
    second = 10 * (x / 5 - x**3 - y**5) * np.exp(-(x**2) - y**2)
    third = np.exp(-((x + 1) ** 2) - y**2) / 3
    return np.asarray((first - second - third)[:, np.newaxis])


def open_peaks(seed: int) -> Source:
    """2,000 training and 1,000 test points drawn uniformly from [-3, 3] x [-3, 3] by the run's seed."""
    drawn = [
        6.0 * uniforms(seed, "peaks", part, np.arange(2 * n)).reshape(n, 2) - 3.0 for part, n in enumerate((2000, 1000))
    ]
    train, test = (Arrays("peaks", points, peaks(points)) for points in drawn)
    return Source(train, test, "regression", 0, standardize=False)
