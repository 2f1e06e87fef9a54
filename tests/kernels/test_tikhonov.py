"""A step of sampled Tikhonov in one call: the numbers of numpy and LAPACK, for any few rows."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcopt.kernels.tikhonov import MOST_ROWS, CompiledBlocks, CompiledResiduals, CompiledStep
from hpcopt.linalg.sampled_blocks import SampledBlocks
from hpcopt.linalg.sampled_tikhonov import FLAT, LEAST_FREEDOM, Bounds, SampledTriangle, best, cross_validation

BOUNDS = Bounds(least=1e-7, most=1e3, count=60, negative=True)
SHAPES = [(1, 1, 1), (5, 17, 72), (6, 6, 4), (MOST_ROWS, 40, 3)]
"""Rows n, columns m, outputs t."""


@pytest.fixture(scope="module")
def step(library: Path) -> CompiledStep:
    return CompiledStep(ctypes.CDLL(str(library)))


def draw(n: int, m: int, t: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows F (n, m), R^T (n, t) and W (t, m)."""
    drawn = np.random.default_rng(n).standard_normal
    return torch.from_numpy(drawn((n, m))), torch.from_numpy(drawn((n, t))), torch.from_numpy(drawn((t, m)))


def taken(
    step: CompiledStep, f: torch.Tensor, right: torch.Tensor, w: torch.Tensor, before: float, tail: float = 0.0
) -> torch.Tensor:
    numbers = tail, before, right.numel(), LEAST_FREEDOM, FLAT, BOUNDS.unmoved(before)
    return step(f, right, w, torch.from_numpy(BOUNDS.candidates(before)), numbers)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("before", [1e-10, 1e-3, 10.0])
def test_it_is_that_of_singular_values_and_all_criteria(
    step: CompiledStep, shape: tuple[int, int, int], before: float
) -> None:
    f, right, w = draw(*shape)
    sampled = SampledTriangle(np.zeros((0, shape[1])), f.numpy(), right.numpy(), 0.5, w.numpy())
    trials = BOUNDS.candidates(before)
    trial = best(trials, cross_validation(sampled, trials, before, len(f)), BOUNDS, before)
    found = taken(step, f, right, w, before, tail=0.5)
    expected = torch.from_numpy(sampled.moved(w.numpy(), trial, before + trial))
    torch.testing.assert_close(found[:-4].view(w.shape), expected, rtol=1e-12, atol=1e-12)
    numbers = before + trial, *sampled.extremes, float(right.square().sum()) + 0.5
    assert found[-4:].tolist() == pytest.approx(numbers, rel=1e-12)


def test_singular_values_are_each_as_accurate_as_the_rows(step: CompiledStep) -> None:
    """Those of rows of very unlike lengths: a factorisation of the whole is accurate beside the largest alone."""
    f, right, w = draw(6, 6, 4)
    rows = torch.linalg.qr(f).Q * torch.logspace(0, -12, 6, dtype=f.dtype)[:, None]
    rows[1] += rows[0]
    smallest = float(taken(step, rows, right, w, 1e-3)[-3])
    assert smallest == pytest.approx(1e-24, rel=1e-9)


def test_criteria_that_are_all_alike_leave_lambda_as_it_is(step: CompiledStep) -> None:
    f, right, w = draw(5, 17, 3)
    assert float(taken(step, torch.zeros_like(f), right, w, 0.5)[-4]) == 0.5
    assert float(taken(step, torch.zeros_like(f), right, w, 1e-10)[-4]) == pytest.approx(1e-7)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_not_finite_shows_in_the_step(step: CompiledStep, bad: float, place: int) -> None:
    given = draw(5, 17, 3)
    given[place][2, 1] = bad
    assert not bool(taken(step, *given, 0.5).isfinite().all())


@pytest.mark.parametrize("bias", [0, 1])
def test_it_makes_rows_and_residuals_of_features_and_targets(step: CompiledStep, bias: int) -> None:
    features, targets, w = draw(5, 7, 3)
    w = torch.nn.functional.pad(w, (0, bias), value=2.0)
    rows = 0.5 * torch.nn.functional.pad(features, (0, bias), value=1.0)
    trials = torch.from_numpy(BOUNDS.candidates(0.3))
    numbers = 0.0, 0.3, 15.0, LEAST_FREEDOM, FLAT, 0.0
    expected = step(rows, rows @ w.T - 0.5 * targets, w, trials, numbers)
    torch.testing.assert_close(step(features, targets, w, trials, numbers, 0.5), expected, rtol=1e-12, atol=1e-12)


def test_rows_may_lie_anywhere_but_weights_of_single_precision_are_refused(step: CompiledStep) -> None:
    f, right, w = draw(5, 17, 3)
    whole = torch.cat([f, right], dim=1)
    torch.testing.assert_close(taken(step, whole[:, :17], whole[:, 17:], w, 0.5), taken(step, f, right, w, 0.5))
    with pytest.raises(ValueError, match="takes contiguous ones"):
        taken(step, f, right, w.float(), 0.5)


@pytest.mark.parametrize("bias", [0, 1])
@pytest.mark.parametrize("rows", [(5,), (2, 3), (0,)])
def test_residuals_are_those_of_a_linear_layer(library: Path, bias: int, rows: tuple[int, ...]) -> None:
    drawn = np.random.default_rng(3).standard_normal
    features, targets = torch.from_numpy(drawn((*rows, 7))).requires_grad_(), torch.from_numpy(drawn((*rows, 3)))
    w = torch.from_numpy(drawn((3, 7 + bias)))
    outputs = torch.nn.functional.linear(features, w[:, :7], w[:, 7] if bias else None)
    expected = (outputs - targets).square().sum() / 2
    (gradient,) = torch.autograd.grad(expected, features)
    loss, found = CompiledResiduals(ctypes.CDLL(str(library)))(features, targets, w, 0.5)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(found, 0.5 * gradient, rtol=1e-14, atol=1e-14)


def test_residuals_of_targets_of_single_precision_are_refused(library: Path) -> None:
    f, right, w = draw(5, 17, 3)
    with pytest.raises(ValueError, match="takes contiguous ones"):
        CompiledResiduals(ctypes.CDLL(str(library)))(f, right.float(), w, 0.5)


class Blocks:
    """Blocks of some widths that meet in the bias, their columns of W in any order; N rows each, t outputs."""

    def __init__(self, widths: list[int], rows: int, t: int) -> None:
        random = np.random.default_rng(rows)
        self.count, self.rows = rows * len(widths) * t, rows * len(widths)
        places, self.square = random.permutation(sum(widths)), 0.0
        self.weights = torch.from_numpy(random.standard_normal((t, len(places) + 1)))
        self.columns, self.grams, self.cross = [], [], []
        for own in np.split(places, np.cumsum(widths)[:-1]):
            z = np.concatenate([random.standard_normal((rows, len(own))), np.ones((rows, 1))], axis=1)
            right = random.standard_normal((rows, t))
            self.columns.append(torch.from_numpy(np.append(own, len(places))))
            self.grams.append(torch.from_numpy(z.T @ z / rows))
            self.cross.append(torch.from_numpy(z.T @ right / rows))
            self.square += float(np.square(right).sum() / rows)

    def taken(self, step: CompiledBlocks, before: float) -> torch.Tensor:
        trials = torch.from_numpy(np.append(BOUNDS.candidates(before), BOUNDS.unmoved(before)))
        numbers = self.square, before, self.count, LEAST_FREEDOM, FLAT
        states = list(zip(self.grams, self.cross, strict=True))
        columns = tuple(tuple(own[:-1].tolist()) for own in self.columns)
        return step(states, self.weights, columns, trials, numbers)

    def sampled(self) -> SampledBlocks:
        grams, cross = [gram.numpy() for gram in self.grams], [right.numpy().T for right in self.cross]
        columns = [own.numpy() for own in self.columns]
        return SampledBlocks(grams, grams, cross, self.square, self.weights.numpy(), columns, bias=True)


@pytest.fixture(scope="module")
def by_blocks(library: Path) -> CompiledBlocks:
    return CompiledBlocks(ctypes.CDLL(str(library)))


@pytest.mark.parametrize("widths", [[1], [2, 1], [9], [64, 64], [4, 3, 2, 5]])
@pytest.mark.parametrize("before", [1e-10, 1e-3, 10.0])
def test_a_step_of_blocks_is_that_of_their_eigenvectors(
    by_blocks: CompiledBlocks, widths: list[int], before: float
) -> None:
    blocks = Blocks(widths, 200, 2)
    sampled, trials = blocks.sampled(), BOUNDS.candidates(before)
    trial = best(trials, cross_validation(sampled, trials, before, blocks.rows), BOUNDS, before)
    found = blocks.taken(by_blocks, before)
    expected = torch.from_numpy(sampled.moved(blocks.weights.numpy(), trial, before + trial))
    torch.testing.assert_close(found[:-4].view(expected.shape), expected, rtol=1e-12, atol=1e-12)
    assert found[[-4, -1]].tolist() == pytest.approx([before + trial, blocks.square], rel=1e-12)


@pytest.mark.parametrize(("widths", "rows"), [([9], 200), ([9], 4), ([5, 3], 40)])
def test_singular_values_of_blocks_lie_in_their_bounds_which_are_not_far(
    by_blocks: CompiledBlocks, widths: list[int], rows: int
) -> None:
    blocks = Blocks(widths, rows, 1)
    whole = torch.zeros(sum(widths) + 1, sum(widths) + 1, dtype=torch.float64)
    for gram, own in zip(blocks.grams, blocks.columns, strict=True):
        whole[own[:, None], own] += gram
    values = torch.linalg.eigvalsh(whole)
    least, most = blocks.taken(by_blocks, 0.1)[[-3, -2]].tolist()
    assert least <= max(0.0, float(values[0])) + 1e-12
    assert float(values[-1]) <= most < 3 * float(values[-1])
    if rows > sum(widths):
        assert least > float(values[0]) / 4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gram_matrix_that_is_not_finite_shows(by_blocks: CompiledBlocks, bad: float) -> None:
    blocks = Blocks([5, 3], 20, 2)
    blocks.grams[1][0, 1] = blocks.grams[1][1, 0] = bad
    assert not bool(blocks.taken(by_blocks, 0.5).isfinite().all())


def test_blocks_of_nothing_leave_lambda_and_weights_as_they_are(by_blocks: CompiledBlocks) -> None:
    blocks = Blocks([5, 3], 20, 2)
    for each in (*blocks.grams, *blocks.cross):
        each.zero_()
    found = blocks.taken(by_blocks, 0.5)
    assert float(found[-4]) == 0.5
    torch.testing.assert_close(found[:-4].view(blocks.weights.shape), blocks.weights)
