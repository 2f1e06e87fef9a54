"""The step for a linear layer and the choice of lambda, against dense least squares and explicit inverses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from hpcopt.linalg import tsqr
from hpcopt.linalg.sampled_blocks import SampledBlocks
from hpcopt.linalg.sampled_tikhonov import (
    Bounds,
    Sampled,
    SampledGram,
    SampledTriangle,
    best,
    cross_validation,
    discrepancy,
)

M, T, N, DAMPING = 6, 4, 5, 0.3
BOUNDS = Bounds(least=1e-7, most=1e3, count=60, negative=True)
LAMBDAS = torch.tensor([-0.1, 0.0, 0.2, 5.0], dtype=torch.float64)
EYE = torch.eye(M, dtype=torch.float64)


class Problem(NamedTuple):
    """Features Z (m, n) of the old batches and of the new one, targets C (t, n), weights W (t, m)."""

    old: list[torch.Tensor]
    new: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor

    @property
    def residual(self) -> torch.Tensor:
        return self.weights @ self.new - self.targets

    @property
    def window(self) -> torch.Tensor:
        return torch.cat([*self.old, self.new], dim=1)


def problem(memory: int = 2, seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    make: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    old = [torch.randn(M, N, **make) for _ in range(memory)]
    return Problem(old, torch.randn(M, N, **make), torch.randn(T, N, **make), torch.randn(T, M, **make))


def by_gram(p: Problem, free: int = 0) -> Sampled:
    cross, square = p.residual @ p.new.T, float(p.residual.square().sum())
    return SampledGram(p.window @ p.window.T, p.new @ p.new.T, cross, square, p.weights, free)


def by_triangle(p: Problem, free: int = 0) -> Sampled:
    old = [tsqr.leaf(z.T, z.T[:, :0]).factor for z in p.old]
    window = torch.cat(old) if old else torch.zeros(0, M, dtype=torch.float64)
    return SampledTriangle(window, tsqr.leaf(p.new.T, p.residual.T), p.weights, free)


forms = pytest.mark.parametrize("form", [by_gram, by_triangle])
Form = Callable[[Problem], Sampled]


def stacked(p: Problem, lam: float, damping: float) -> torch.Tensor:
    """The step as one least-squares problem in vec(W), with Kronecker products written out."""
    eye = torch.eye(T, dtype=torch.float64)
    rows = [torch.kron(z.T.contiguous(), eye) for z in (*p.old, p.new)]
    w, c = p.weights.T.reshape(-1), p.targets.T.reshape(-1)
    ridge = math.sqrt(damping) * torch.eye(M * T, dtype=torch.float64)
    right = [torch.zeros(N * T, dtype=torch.float64) for _ in p.old] + [rows[-1] @ w - c, lam / math.sqrt(damping) * w]
    step = torch.linalg.lstsq(torch.cat([*rows, ridge]), torch.cat(right)).solution
    return (w - step).view(M, T).T


def proximal(p: Problem, lam: float, before: float) -> torch.Tensor:
    """Fit the new batch, keep the predictions on the old ones, weights small, and close to W."""
    w = p.weights
    system = p.window @ p.window.T + (lam + before) * EYE
    kept = sum((z @ z.T for z in p.old), torch.zeros_like(EYE))
    return torch.linalg.solve(system, (p.targets @ p.new.T + w @ kept + before * w).T).T


@forms
@pytest.mark.parametrize("memory", [0, 2])
@pytest.mark.parametrize("lam", [-0.1, 0.0, 0.7])
def test_the_step_is_the_stacked_and_the_proximal_one(form: Form, memory: int, lam: float) -> None:
    p = problem(memory)
    found = form(p).moved(p.weights, lam, DAMPING + lam)
    torch.testing.assert_close(found, stacked(p, lam, DAMPING + lam), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, proximal(p, lam, DAMPING), rtol=1e-12, atol=1e-12)


@forms
@pytest.mark.parametrize("lambdas", [[0.1] * 4, [0.5, -0.2, 1e-3, 2.0]])
def test_one_pass_that_keeps_everything_gives_the_tikhonov_solution_of_all_data(
    form: Form, lambdas: list[float]
) -> None:
    start = problem(0)
    weights, old, seen, damping = start.weights, [], [], 0.0
    for number, lam in enumerate(lambdas):
        batch = problem(0, seed=10 + number)
        p = Problem(old, batch.new, batch.targets, weights)
        damping += lam
        weights = form(p).moved(weights, lam, damping)
        old, seen = [*old, batch.new], [*seen, batch.targets]
    z, c = torch.cat(old, dim=1), torch.cat(seen, dim=1)
    expected = torch.linalg.solve(z @ z.T + sum(lambdas) * EYE, z @ c.T).T
    assert float((weights - expected).norm() / expected.norm()) < 1e-12


def by_blocks(p: Problem, free: int) -> Sampled:
    """As one block, of which the last column is the bias."""
    cross, square = [p.residual @ p.new.T], float(p.residual.square().sum())
    grams = [p.window @ p.window.T], [p.new @ p.new.T]
    return SampledBlocks(*grams, cross, square, p.weights, [torch.arange(M)], bias=True, free=free)


@pytest.mark.parametrize("form", [by_gram, by_triangle, by_blocks])
@pytest.mark.parametrize("memory", [0, 2])
@pytest.mark.parametrize("lam", [-0.1, 0.7])
def test_a_bias_that_is_free_is_neither_kept_small_nor_close(form: Callable, memory: int, lam: float) -> None:
    p, damping, held = problem(memory), DAMPING + lam, EYE.clone()
    held[-1, -1] = 0
    sampled, inverse = form(p, free=1), torch.linalg.inv(p.window @ p.window.T + damping * held)
    expected = p.weights - (p.residual @ p.new.T + lam * p.weights @ held) @ inverse
    torch.testing.assert_close(sampled.moved(p.weights, lam, damping), expected, rtol=1e-11, atol=1e-11)
    one, all_of_it = torch.tensor([lam], dtype=torch.float64), torch.tensor([damping], dtype=torch.float64)
    left = float((expected @ p.new - p.targets).square().sum())
    assert float(sampled.residuals(one, all_of_it)) == pytest.approx(left, rel=1e-9)
    assert float(sampled.trace(all_of_it)) == pytest.approx(float(torch.trace(inverse @ p.new @ p.new.T)), rel=1e-10)


@forms
@pytest.mark.parametrize("memory", [0, 3])
def test_the_criteria_are_those_of_explicit_inverses(form: Form, memory: int) -> None:
    p = problem(memory)
    rows, direct, residuals = torch.kron(p.new.T.contiguous(), torch.eye(T, dtype=torch.float64)), [], []
    for lam in LAMBDAS.tolist():
        all_rows = torch.kron(p.window.T.contiguous(), torch.eye(T, dtype=torch.float64))
        inverse = torch.linalg.inv(all_rows.T @ all_rows + (DAMPING + lam) * torch.eye(M * T, dtype=torch.float64))
        residuals.append(float((stacked(p, lam, DAMPING + lam) @ p.new - p.targets).square().sum()))
        direct.append(residuals[-1] / (N * T - float(torch.trace(rows @ inverse @ rows.T))) ** 2)
    found = cross_validation(form(p), LAMBDAS, DAMPING, N)
    torch.testing.assert_close(found, torch.tensor(direct, dtype=torch.float64), rtol=1e-11, atol=0)
    wanted = (torch.tensor(residuals, dtype=torch.float64) - 2.0) ** 2
    torch.testing.assert_close(discrepancy(form(p), LAMBDAS, DAMPING, 2.0), wanted, rtol=1e-10, atol=1e-12)


@forms
def test_a_window_that_interpolates_the_batch_leaves_a_finite_criterion(form: Form) -> None:
    p = problem(0)
    criteria = cross_validation(form(p), torch.zeros(1, dtype=torch.float64), 1e-12, N)
    assert bool(criteria.isfinite().all())


def test_gram_matrices_lose_what_triangles_keep() -> None:
    """Features with condition number 1e10, one direction of them next to nothing in the others."""
    generator = torch.Generator().manual_seed(3)
    u = torch.linalg.qr(torch.randn(M, M, generator=generator, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(3 * M, M, generator=generator, dtype=torch.float64)).Q
    z = u @ torch.diag(torch.logspace(0, -10, M, dtype=torch.float64)) @ v.T
    right = torch.randn(T, M, generator=generator, dtype=torch.float64)
    p = Problem([], z, right @ z, torch.zeros(T, M, dtype=torch.float64))
    by, wrong = (form(p).moved(p.weights, 1e-30, 1e-30) for form in (by_triangle, by_gram))
    assert float((by - right).norm() / right.norm()) < 1e-5
    assert float((by @ z - p.targets).norm() / p.targets.norm()) < 1e-12
    assert float((wrong - right).norm() / right.norm()) > 1e-3


def test_candidates_change_lambda_by_half_of_itself_at_most_and_end_at_its_bound() -> None:
    trials = BOUNDS.candidates(0.5)
    assert len(trials) == 60
    assert float(trials.min()) == pytest.approx(-0.25)
    assert float(trials.max()) == pytest.approx(0.25)
    assert float((BOUNDS.candidates(1.2e-7) + 1.2e-7).min()) == pytest.approx(1e-7)
    assert (BOUNDS.candidates(1e-10) + 1e-10).tolist() == pytest.approx([1e-7] * 60)


def test_candidates_without_negative_ones_lie_in_the_bounds() -> None:
    trials = Bounds(1e-4, 10.0, 30, negative=False).candidates(0.5)
    assert (float(trials[0]), float(trials[-1]), len(trials)) == (pytest.approx(1e-4), pytest.approx(10.0), 30)


@forms
def test_the_best_candidate_has_the_least_criterion(form: Form) -> None:
    sampled, trials = form(problem()), BOUNDS.candidates(DAMPING)
    criteria = cross_validation(sampled, trials, DAMPING, N)
    chosen = best(trials, criteria, BOUNDS, DAMPING)
    assert criteria[trials.tolist().index(chosen)] == criteria.min()


def test_criteria_that_are_all_alike_leave_lambda_as_it_is() -> None:
    trials = BOUNDS.candidates(DAMPING)
    assert best(trials, torch.ones_like(trials), BOUNDS, DAMPING) == 0
    assert best(trials, torch.ones_like(trials), BOUNDS, 1e-10) == pytest.approx(1e-7 - 1e-10)
