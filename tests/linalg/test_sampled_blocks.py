"""The step in blocks against the one by the whole matrix."""

from __future__ import annotations

import numpy as np
import pytest

from hpcopt.linalg.sampled_blocks import SampledBlocks
from hpcopt.linalg.sampled_tikhonov import Array, SampledGram

ROWS, OUTPUTS, DAMPING = 9, 3, 0.3
OWN = ([0, 4], [1, 3, 5], [2], [])
TRIALS = np.array([-0.2, 0.0, 0.4, 7.0])


def both(bias: bool, memory: int, free: int = 0) -> tuple[SampledBlocks, SampledGram, Array]:
    """A batch and some before it in both forms, with W (t, m)."""
    drawn = np.random.default_rng(5).standard_normal
    columns = [np.array([*own, *([6] if bias else [])], dtype=np.int64) for own in OWN]
    width = 6 + bias
    weights, whole, new = drawn((OUTPUTS, width)), np.zeros((width, width)), np.zeros((width, width))
    cross, square = np.zeros((OUTPUTS, width)), 0.0
    windows, grams, crosses = [], [], []
    for own in columns:
        rows, residual = drawn((1 + memory, ROWS, len(own))), drawn((OUTPUTS, ROWS))
        each = rows.swapaxes(1, 2) @ rows
        windows, grams, crosses = [*windows, each.sum(0)], [*grams, each[-1]], [*crosses, residual @ rows[-1]]
        whole[np.ix_(own, own)] += windows[-1]
        new[np.ix_(own, own)] += grams[-1]
        cross[:, own] += crosses[-1]
        square += float(np.square(residual).sum())
    if not memory:
        windows, whole = grams, new
    blocks = SampledBlocks(windows, grams, crosses, square, weights, columns, bias, free)
    return blocks, SampledGram(whole, new.copy(), cross, square, weights, free), weights


@pytest.mark.parametrize("memory", [0, 2])
@pytest.mark.parametrize(("bias", "free"), [(True, 0), (True, 1), (False, 0)])
def test_steps_residuals_and_traces_are_those_of_the_whole_matrix(bias: bool, free: int, memory: int) -> None:
    blocks, whole, weights = both(bias, memory, free)
    damping = DAMPING + TRIALS
    exact = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(blocks.trace(damping), whole.trace(damping), **exact)
    np.testing.assert_allclose(blocks.residuals(TRIALS, damping), whole.residuals(TRIALS, damping), **exact)
    for trial in TRIALS.tolist():
        found, expected = (form.moved(weights, trial, DAMPING + trial) for form in (blocks, whole))
        np.testing.assert_allclose(found, expected, **exact)
    assert blocks.outputs == whole.outputs == OUTPUTS


@pytest.mark.parametrize("bias", [True, False])
def test_the_singular_values_are_bounded(bias: bool) -> None:
    blocks, whole, _ = both(bias, 0)
    (low, high), (least, most) = blocks.extremes, whole.extremes
    assert 0.3 * least < low <= least * (1 + 1e-12)
    assert most * (1 - 1e-12) <= high < 3 * most


@pytest.mark.parametrize("free", [0, 1])
def test_a_bias_that_the_others_explain_leaves_finite_steps(free: int) -> None:
    """A row of ones that is a column too: s is all rounding."""
    ones, columns = np.ones((2, 2)), [np.array([0, 2]), np.array([1, 2])]
    cross, weights = [np.ones((1, 2))] * 2, np.ones((1, 3))
    blocks = SampledBlocks([ones, ones], [ones, ones], cross, 1.0, weights, columns, True, free)
    assert blocks.extremes[0] < 1e-12
    assert bool(np.isfinite(blocks.moved(weights, 1e-14, 1e-14)).all())
