"""The step in blocks against the one by the whole matrix."""

from __future__ import annotations

import pytest
import torch

from hpcopt.linalg.sampled_blocks import SampledBlocks
from hpcopt.linalg.sampled_tikhonov import SampledGram

ROWS, OUTPUTS, DAMPING = 9, 3, 0.3
OWN = ([0, 4], [1, 3, 5], [2], [])
TRIALS = torch.tensor([-0.2, 0.0, 0.4, 7.0], dtype=torch.float64)


def both(bias: bool, memory: int, free: int = 0) -> tuple[SampledBlocks, SampledGram, torch.Tensor]:
    """A batch and some before it in both forms, with W (t, m)."""
    generator = torch.Generator().manual_seed(5)
    columns = [torch.tensor([*own, *([6] if bias else [])], dtype=torch.int64) for own in OWN]
    width = 6 + bias
    weights = torch.randn(OUTPUTS, width, generator=generator, dtype=torch.float64)
    whole, new = torch.zeros(2, width, width, dtype=torch.float64).unbind()
    cross, square = torch.zeros(OUTPUTS, width, dtype=torch.float64), 0.0
    windows, grams, crosses = [], [], []
    for own in columns:
        rows = torch.randn(1 + memory, ROWS, len(own), generator=generator, dtype=torch.float64)
        residual = torch.randn(OUTPUTS, ROWS, generator=generator, dtype=torch.float64)
        each = rows.mT @ rows
        windows, grams, crosses = [*windows, each.sum(0)], [*grams, each[-1]], [*crosses, residual @ rows[-1]]
        whole[own[:, None], own] += windows[-1]
        new[own[:, None], own] += grams[-1]
        cross[:, own] += crosses[-1]
        square += float(residual.square().sum())
    blocks = SampledBlocks(windows, grams, crosses, square, weights, columns, bias, free)
    return blocks, SampledGram(whole, new, cross, square, weights, free), weights


@pytest.mark.parametrize("memory", [0, 2])
@pytest.mark.parametrize(("bias", "free"), [(True, 0), (True, 1), (False, 0)])
def test_steps_residuals_and_traces_are_those_of_the_whole_matrix(bias: bool, free: int, memory: int) -> None:
    blocks, whole, weights = both(bias, memory, free)
    damping = DAMPING + TRIALS
    exact = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(blocks.trace(damping), whole.trace(damping), **exact)
    torch.testing.assert_close(blocks.residuals(TRIALS, damping), whole.residuals(TRIALS, damping), **exact)
    for trial in TRIALS.tolist():
        found, expected = (form.moved(weights, trial, DAMPING + trial) for form in (blocks, whole))
        torch.testing.assert_close(found, expected, **exact)
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
    ones, columns = torch.ones(2, 2, dtype=torch.float64), [torch.tensor([0, 2]), torch.tensor([1, 2])]
    cross, weights = [torch.ones(1, 2, dtype=torch.float64)] * 2, torch.ones(1, 3, dtype=torch.float64)
    blocks = SampledBlocks([ones, ones], [ones, ones], cross, 1.0, weights, columns, True, free)
    assert blocks.extremes[0] < 1e-12
    assert bool(blocks.moved(weights, 1e-14, 1e-14).isfinite().all())
