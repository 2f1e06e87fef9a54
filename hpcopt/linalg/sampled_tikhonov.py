"""One step of sampled limited-memory Tikhonov for a linear layer, and the choice of its regularisation.

    W <- W - (S + lambda W) (G + Lambda I)^-1,    Lambda <- Lambda + lambda

with S = R Z^T of the residual R = W Z - C of the new batch, and G the Gram matrix of the features of the new batch and
of the r before it (Newman, Chung, Chung and Ruthotto 2022, doi 10.1137/21M1452512; Slagel et al. 2019, arXiv
1812.06165). With M the features of all r + 1 batches, M = U diag(sigma) V^T, everything is known in the basis U. A
trial lambda is judged by sampled generalised cross-validation,

    sGCV(l) = |W(l) Z - C|^2 / (N t - trace)^2,   trace = t sum_j d_j |B_j|^2,   d_j = 1 / (sigma_j^2 + Lambda + l)

with B = Z^T U: the residual of the new batch against its degrees of freedom. Both are written in m numbers and m x m
matrices, so that a trial costs neither outputs nor samples. Features may be known by Gram matrices or by triangles
with R^T R = G; the former square the condition number. Where the last column, that of the bias, is free of Lambda, the
basis Y is no longer orthogonal, but all the same Y^T G Y = diag(sigma^2), and d of the bias is 1 / sigma^2.

Shapes: Z (m, N) and C (t, N) of the new batch, both with all samples scaled by 1 / sqrt(n); W and S (t, m), U (m, q);
k trials. N is the number of rows, n samples times their pixels in a convolution. Everything in float64, and by numpy:
matrices are small, so that it is calls that take the time of a step, and numpy's take a part of that of torch's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]

LEAST_FREEDOM = 1e-8
"""Degrees of freedom are taken as at least this part of N t: a window that interpolates the batch leaves none."""
SMALLEST_TRIAL = 1e-16
"""The candidates nearest to 0."""
FLAT = 1e-12
"""Criteria that differ by less than this part say nothing about lambda, which is then 0."""


class Sampled(Protocol):
    """The new batch and the window, ready for any lambda."""

    @property
    def outputs(self) -> int:
        """Outputs t."""
        ...

    @property
    def extremes(self) -> tuple[float, float]:
        """Squares of the smallest and the largest singular value of the window, or bounds of them."""
        ...

    def trace(self, damping: Array) -> Array:
        """That of Z^T (G + Lambda I)^-1 Z for each Lambda (k,)."""
        ...

    def residuals(self, trials: Array, damping: Array) -> Array:
        """|W(l) Z - C|^2 for each trial l (k,), with Lambda + l as ``damping`` (k,)."""
        ...

    def moved(self, weights: Array, trial: float, damping: float) -> Array:
        """W after a step with lambda = ``trial`` and Lambda = ``damping``, (t, m)."""
        ...


class SampledDiagonal:
    """In the basis U of the window, where that is diagonal.

    Attributes:
        squares: sigma^2 (q,), not negative.
        basis: U (m, q), orthogonal if no column is free; q < m where the window has fewer rows than columns.
        free: how many columns Lambda does not hold: the last one, or none.
        right: P = S U (t, q).
        weights: Q = W U (t, q), of W without its free column.
        diagonal: |B_j|^2 (q,).
    """

    squares: Array
    basis: Array
    free: int
    right: Array
    weights: Array
    diagonal: Array

    @property
    def outputs(self) -> int:
        """Outputs t."""
        return len(self.right)

    @property
    def extremes(self) -> tuple[float, float]:
        """Squares of the smallest and the largest singular value of the window."""
        width, found = self.basis.shape
        return float(self.squares.min()) if found == width else 0.0, float(self.squares.max(initial=0.0))

    def trace(self, damping: Array) -> Array:
        """That of Z^T (G + Lambda I)^-1 Z for each Lambda (k,)."""
        return self.inverses(damping) @ self.diagonal

    def inverses(self, damping: Array) -> Array:
        """For each Lambda (k,) all d, (k, q)."""
        total: Array = np.add.outer(damping, self.squares)
        if self.free:
            total[:, -self.free :] = self.squares[-self.free :]
        return np.reciprocal(total, out=total)

    def moved(self, weights: Array, trial: float, damping: float) -> Array:
        """W after a step with lambda = ``trial`` and Lambda = ``damping``, (t, m)."""
        step = (self.right + trial * self.weights) * self.inverses(np.array([damping]))
        moved: Array = weights - step @ self.basis.T
        return moved

    def _take_in(self, weights: Array) -> Array:
        """W in the basis."""
        held = weights.shape[1] - self.free
        taken: Array = weights[:, :held] @ self.basis[:held]
        return taken


class SampledGram(SampledDiagonal):
    """The new batch as Gram matrices.

    Args:
        window: G (m, m).
        gram: Z Z^T (m, m) of the new batch; the window itself where there is no batch before it.
        cross: S (t, m).
        square: |R|^2.
        weights: W (t, m).
        free: 1 if Lambda does not hold the last column.
    """

    def __init__(self, window: Array, gram: Array, cross: Array, square: float, weights: Array, free: int = 0) -> None:
        held, self.free = len(window) - free, free
        border, corner = window[:held, held:], window[held:, held:].diagonal()
        squares, vectors = np.linalg.eigh(window[:held, :held] - border / corner @ border.T)
        self.squares = np.concatenate([np.maximum(squares, 0.0), corner])
        self.basis = _basis(vectors, border.T / corner[:, None])
        self.right, self.weights, self._square = cross @ self.basis, self._take_in(weights), square
        self._rotated = np.diag(self.squares) if window is gram else self.basis.T @ gram @ self.basis
        self.diagonal = self._rotated.diagonal()

    def residuals(self, trials: Array, damping: Array) -> Array:
        """The expanded square: rho - 2 d^T (p + l q) + d^T (E0 + l E1 + l^2 E2) d, not below 0."""
        p, q, d, trials = self.right, self.weights, self.inverses(damping), trials[:, None]
        mixed = p.T @ q
        e0, e1, e2 = (part * self._rotated for part in (p.T @ p, mixed + mixed.T, q.T @ q))
        linear = (p * p).sum(0) + trials * (p * q).sum(0)
        quadratic = d @ e0 + trials * (d @ e1 + trials * (d @ e2))
        found: Array = self._square + (d * (quadratic - 2 * linear)).sum(1)
        return np.maximum(found, 0.0)


class SampledTriangle(SampledDiagonal):
    """The new batch by rows F with F^T F = Z Z^T, a triangle or Z^T itself: nothing is squared, and nothing cancels.

    Args:
        window: such rows of the batches before, one below the other (any, m).
        rows: F (n, m) of the new batch.
        target: what belongs to them of R^T, (n, t).
        tail: what no W explains of |R|^2.
        weights: W (t, m).
        free: 1 if Lambda does not hold the last column.
    """

    def __init__(self, window: Array, rows: Array, target: Array, tail: float, weights: Array, free: int = 0) -> None:
        width, self.free = weights.shape[1], free
        if len(rows) >= width:  # as in a triangle: of a batch of few samples with rows of 0 below
            filled = rows.any(axis=1)
            tail += float(np.square(target[~filled]).sum())
            rows, target = rows[filled], target[filled]
        every = np.concatenate([window[window.any(axis=1)], rows]) if len(window) else rows
        held, last = every[:, : width - free], every[:, width - free :]
        corner = np.einsum("nf,nf->f", last, last)
        self._slopes = (last / corner).T @ held
        left, sigma, vectors = np.linalg.svd(held - last @ self._slopes if free else held, full_matrices=False)
        self.squares, self.basis = np.concatenate([sigma * sigma, corner]), _basis(vectors.T, self._slopes)
        # R11 U, of which also the smallest columns are accurate.
        self._rows = np.concatenate([left * sigma, last], axis=1)[len(every) - len(rows) :]
        self._target, self._tail = target, tail
        self.right, self.weights = target.T @ self._rows, self._take_in(weights)
        self.diagonal = np.einsum("nq,nq->q", self._rows, self._rows)
        self._left = left if len(rows) == len(every) == left.shape[1] and not free else None

    def residuals(self, trials: Array, damping: Array) -> Array:
        """|R12 - R11 X^T|^2 + tail."""
        if self._left is not None:
            return self._along(self._left, trials, damping)
        scaled = self._rows * self.inverses(damping)[:, None]
        both = np.concatenate([scaled, trials[:, None, None] * scaled], axis=2)  # one product for all trials
        explained = both @ np.concatenate([self.right, self.weights], axis=1).T
        found: Array = np.square(self._target - explained).sum((1, 2))
        return found + self._tail

    def _along(self, left: Array, trials: Array, damping: Array) -> Array:
        """The same without a window: every direction of the basis has a residual of its own, Lambda t - l sigma Q."""
        d, sigma = self.inverses(damping), np.sqrt(self.squares)
        target, weights = left.T @ self._target, sigma[:, None] * self.weights.T
        kept, moved = damping[:, None] * d, trials[:, None] * d
        first, mixed, last = (
            np.einsum("qt,qt->q", *pair) for pair in ((target, target), (target, weights), (weights, weights))
        )
        found: Array = (kept * kept) @ first - 2 * (kept * moved) @ mixed + (moved * moved) @ last
        return np.maximum(found, 0.0) + self._tail

    def moved(self, weights: Array, trial: float, damping: float) -> Array:
        """W after a step with lambda = ``trial`` and Lambda = ``damping``, (t, m)."""
        moved = super().moved(weights, trial, damping)
        held = weights.shape[1] - self.free
        if self.basis.shape[1] < len(self.basis):
            # What the window does not see only shrinks, and a free column takes over from that.
            unseen = (trial / damping) * (weights[:, :held] - self.weights @ self.basis[:held].T)
            moved[:, :held] -= unseen
            moved[:, held:] += unseen @ self._slopes.T
        return moved


@dataclass(frozen=True)
class Bounds:
    """What lambda may be.

    Attributes:
        least: Lambda is lifted to at least this.
        most: largest lambda of a step.
        count: number of candidates.
        negative: whether lambda may be negative, which lets Lambda fall.
    """

    least: float
    most: float
    count: int
    negative: bool

    def candidates(self, damping: float) -> Array:
        """Trial values of lambda where Lambda is ``damping``.

        Both signs up to half of Lambda, so that it changes by half of itself at most, or positive ones in the bounds.
        """
        if not self.negative:
            return _geometric(self.least, self.most, self.count)
        end, (signs, exponents) = min(damping / 2, self.most), _both_signs(max(1, self.count // 2))
        low = min(SMALLEST_TRIAL, end)
        # Where Lambda would fall below its bound, so much larger that it does not.
        trials: Array = np.maximum(signs * (low * (end / low) ** exponents), self.least - damping)
        return trials

    def unmoved(self, damping: float) -> float:
        """The lambda that leaves Lambda as it is, or lifts it to its bound."""
        return max(0.0, self.least - damping)


def cross_validation(sampled: Sampled, trials: Array, damping: float, rows: int) -> Array:
    """The sGCV of each trial (k,); Lambda is ``damping`` before the step, N is ``rows``."""
    damped, count = damping + trials, rows * sampled.outputs
    freedom = np.maximum(count - sampled.outputs * sampled.trace(damped), LEAST_FREEDOM * count)
    criteria: Array = sampled.residuals(trials, damped) / (freedom * freedom)
    return criteria


def discrepancy(sampled: Sampled, trials: Array, damping: float, expected: float) -> Array:
    """How far the residual of each trial is from the ``expected`` one, squared (k,)."""
    distances: Array = np.square(sampled.residuals(trials, damping + trials) - expected)
    return distances


def best(trials: Array, criteria: Array, bounds: Bounds, damping: float) -> float:
    """The trial with the least criterion; 0, or what lifts Lambda to its bound, where all are alike."""
    least, most = float(criteria.min()), float(criteria.max())
    if not most - least > FLAT * most:
        return bounds.unmoved(damping)
    return float(trials[criteria.argmin()])


def _basis(vectors: Array, slopes: Array) -> Array:
    """Vectors (p, q) of the columns that are held, and what a free one takes over from each: -slopes (free, p)."""
    if not (free := len(slopes)):
        return vectors
    above = np.concatenate([vectors, np.zeros((len(vectors), free))], axis=1)
    return np.concatenate([above, np.concatenate([-slopes @ vectors, np.eye(free)], axis=1)])


def _geometric(low: float, high: float, count: int) -> Array:
    numbers: Array = low * (high / low) ** _exponents(count)
    return numbers


@lru_cache(maxsize=8)
def _exponents(count: int) -> Array:
    return np.linspace(0.0, 1.0, count)


@lru_cache(maxsize=8)
def _both_signs(count: int) -> tuple[Array, Array]:
    """Signs and exponents of ``count`` negative numbers, ascending, and of as many positive ones."""
    signs, exponents = np.repeat([-1.0, 1.0], count), _exponents(count)
    return signs, np.concatenate([exponents[::-1], exponents])
