"""The step for a linear layer and the choice of lambda, against dense least squares and explicit inverses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch

from hpcopt.linalg import tsqr
from hpcopt.linalg.sampled_blocks import SampledBlocks
from hpcopt.linalg.sampled_tikhonov import (
    Array,
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
LAMBDAS = np.array([-0.1, 0.0, 0.2, 5.0])
EYE = np.eye(M)


class Problem(NamedTuple):
    """Features Z (m, n) of the old batches and of the new one, targets C (t, n), weights W (t, m)."""

    old: list[Array]
    new: Array
    targets: Array
    weights: Array

    @property
    def residual(self) -> Array:
        return self.weights @ self.new - self.targets

    @property
    def window(self) -> Array:
        return np.concatenate([*self.old, self.new], axis=1)


def problem(memory: int = 2, seed: int = 0) -> Problem:
    drawn = np.random.default_rng(seed).standard_normal
    return Problem([drawn((M, N)) for _ in range(memory)], drawn((M, N)), drawn((T, N)), drawn((T, M)))


def by_gram(p: Problem, free: int = 0) -> Sampled:
    cross, square, gram = p.residual @ p.new.T, float(np.square(p.residual).sum()), p.new @ p.new.T
    return SampledGram(p.window @ p.window.T if p.old else gram, gram, cross, square, p.weights, free)


def by_triangle(p: Problem, free: int = 0) -> Sampled:
    def leaf(rows: Array, right: Array) -> tsqr.Triangle:
        return tsqr.leaf(torch.from_numpy(rows.copy()), torch.from_numpy(right.copy()))

    window = [leaf(z.T, z.T[:, :0]).factor.numpy() for z in p.old]
    new = leaf(p.new.T, p.residual.T)
    numbers = np.concatenate([np.zeros((0, M)), *window]), new.factor.numpy(), new.right.numpy()
    return SampledTriangle(*numbers, new.tail, p.weights, free)


def by_rows(p: Problem, free: int = 0) -> Sampled:
    window = np.concatenate([np.zeros((0, M)), *(z.T for z in p.old)])
    return SampledTriangle(window, p.new.T, p.residual.T, 0.0, p.weights, free)


forms = pytest.mark.parametrize("form", [by_gram, by_triangle, by_rows])
Form = Callable[[Problem], Sampled]


def stacked(p: Problem, lam: float, damping: float) -> Array:
    """The step as one least-squares problem in vec(W), with Kronecker products written out."""
    rows = [np.kron(z.T, np.eye(T)) for z in (*p.old, p.new)]
    w, c = p.weights.T.reshape(-1), p.targets.T.reshape(-1)
    ridge = math.sqrt(damping) * np.eye(M * T)
    right = [np.zeros(N * T) for _ in p.old] + [rows[-1] @ w - c, lam / math.sqrt(damping) * w]
    step = np.linalg.lstsq(np.concatenate([*rows, ridge]), np.concatenate(right))[0]
    return (w - step).reshape(M, T).T


def proximal(p: Problem, lam: float, before: float) -> Array:
    """Fit the new batch, keep the predictions on the old ones, weights small, and close to W."""
    w = p.weights
    system = p.window @ p.window.T + (lam + before) * EYE
    kept = sum((z @ z.T for z in p.old), np.zeros_like(EYE))
    return np.linalg.solve(system, (p.targets @ p.new.T + w @ kept + before * w).T).T


@forms
@pytest.mark.parametrize("memory", [0, 2])
@pytest.mark.parametrize("lam", [-0.1, 0.0, 0.7])
def test_the_step_is_the_stacked_and_the_proximal_one(form: Form, memory: int, lam: float) -> None:
    p = problem(memory)
    found = form(p).moved(p.weights, lam, DAMPING + lam)
    np.testing.assert_allclose(found, stacked(p, lam, DAMPING + lam), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found, proximal(p, lam, DAMPING), rtol=1e-12, atol=1e-12)


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
    z, c = np.concatenate(old, axis=1), np.concatenate(seen, axis=1)
    expected = np.linalg.solve(z @ z.T + sum(lambdas) * EYE, z @ c.T).T
    assert distance(weights, expected) < 1e-12


def distance(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def by_blocks(p: Problem, free: int) -> Sampled:
    """As one block, of which the last column is the bias."""
    cross, square = [p.residual @ p.new.T], float(np.square(p.residual).sum())
    grams = [p.new @ p.new.T]
    windows = [p.window @ p.window.T] if p.old else grams
    return SampledBlocks(windows, grams, cross, square, p.weights, [np.arange(M)], bias=True, free=free)


@pytest.mark.parametrize("form", [by_gram, by_triangle, by_rows, by_blocks])
@pytest.mark.parametrize("memory", [0, 2])
@pytest.mark.parametrize("lam", [-0.1, 0.7])
def test_a_bias_that_is_free_is_neither_kept_small_nor_close(form: Callable, memory: int, lam: float) -> None:
    p, damping, held = problem(memory), DAMPING + lam, EYE.copy()
    held[-1, -1] = 0
    sampled, inverse = form(p, free=1), np.linalg.inv(p.window @ p.window.T + damping * held)
    expected = p.weights - (p.residual @ p.new.T + lam * p.weights @ held) @ inverse
    np.testing.assert_allclose(sampled.moved(p.weights, lam, damping), expected, rtol=1e-11, atol=1e-11)
    one, all_of_it = np.array([lam]), np.array([damping])
    left = float(np.square(expected @ p.new - p.targets).sum())
    assert sampled.residuals(one, all_of_it) == pytest.approx(left, rel=1e-9)
    assert sampled.trace(all_of_it) == pytest.approx(np.trace(inverse @ p.new @ p.new.T), rel=1e-10)


@forms
@pytest.mark.parametrize("memory", [0, 3])
def test_the_criteria_are_those_of_explicit_inverses(form: Form, memory: int) -> None:
    p = problem(memory)
    rows, direct, residuals = np.kron(p.new.T, np.eye(T)), [], []
    for lam in LAMBDAS.tolist():
        all_rows = np.kron(p.window.T, np.eye(T))
        inverse = np.linalg.inv(all_rows.T @ all_rows + (DAMPING + lam) * np.eye(M * T))
        residuals.append(float(np.square(stacked(p, lam, DAMPING + lam) @ p.new - p.targets).sum()))
        direct.append(residuals[-1] / (N * T - np.trace(rows @ inverse @ rows.T)) ** 2)
    found = cross_validation(form(p), LAMBDAS, DAMPING, N)
    np.testing.assert_allclose(found, np.array(direct), rtol=1e-11, atol=0)
    wanted = (np.array(residuals) - 2.0) ** 2
    np.testing.assert_allclose(discrepancy(form(p), LAMBDAS, DAMPING, 2.0), wanted, rtol=1e-10, atol=1e-12)


@forms
def test_a_window_that_interpolates_the_batch_leaves_a_finite_criterion(form: Form) -> None:
    p = problem(0)
    criteria = cross_validation(form(p), np.zeros(1), 1e-12, N)
    assert bool(np.isfinite(criteria).all())


@forms
@pytest.mark.parametrize("columns", [N, M])
def test_features_that_are_all_zero_only_shrink_the_weights(form: Form, columns: int) -> None:
    """As where no unit of the layer before is active."""
    p = problem(0)._replace(new=np.zeros((M, columns)), targets=np.ones((T, columns)))
    sampled = form(p)
    assert sampled.extremes == (0.0, 0.0)
    np.testing.assert_allclose(cross_validation(sampled, np.array([0.1]), DAMPING, N), T * columns / (N * T) ** 2)
    np.testing.assert_allclose(sampled.moved(p.weights, 0.1, 0.4), 0.75 * p.weights, rtol=1e-14)


def test_gram_matrices_lose_what_triangles_keep() -> None:
    """Features with condition number 1e10, one direction of them next to nothing in the others."""
    drawn = np.random.default_rng(3).standard_normal
    u, v = (np.linalg.qr(drawn((rows, M)))[0] for rows in (M, 3 * M))
    z, right = u @ np.diag(np.logspace(0, -10, M)) @ v.T, drawn((T, M))
    p = Problem([], z, right @ z, np.zeros((T, M)))
    by, wrong = (form(p).moved(p.weights, 1e-30, 1e-30) for form in (by_triangle, by_gram))
    assert distance(by, right) < 1e-5
    assert distance(by @ z, p.targets) < 1e-12
    assert distance(wrong, right) > 1e-3


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
    assert best(trials, np.ones_like(trials), BOUNDS, DAMPING) == 0
    assert best(trials, np.ones_like(trials), BOUNDS, 1e-10) == pytest.approx(1e-7 - 1e-10)
