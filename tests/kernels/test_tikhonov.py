"""A step of sampled Tikhonov in one call: the numbers of numpy and LAPACK, for any few rows."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcopt.kernels.tikhonov import MOST_ROWS, CompiledStep
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
def test_what_is_not_finite_shows(step: CompiledStep, bad: float, place: int) -> None:
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
