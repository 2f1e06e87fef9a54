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

Shapes: Z (m, N) and C (t, N) of the new batch, both with all samples scaled by 1 / sqrt(n); W and S (t, m), U (m, m);
k trials. N is the number of rows, n samples times their pixels in a convolution. Everything in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from hpcopt.linalg.tsqr import Triangle

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

    def trace(self, damping: torch.Tensor) -> torch.Tensor:
        """That of Z^T (G + Lambda I)^-1 Z for each Lambda (k,)."""
        ...

    def residuals(self, trials: torch.Tensor, damping: torch.Tensor) -> torch.Tensor:
        """|W(l) Z - C|^2 for each trial l (k,), with Lambda + l as ``damping`` (k,)."""
        ...

    def moved(self, weights: torch.Tensor, trial: float, damping: float) -> torch.Tensor:
        """W after a step with lambda = ``trial`` and Lambda = ``damping``, (t, m)."""
        ...


class SampledDiagonal:
    """In the basis U of the window, where that is diagonal.

    Attributes:
        squares: sigma^2 (m,), not negative.
        basis: U (m, m), orthogonal if no column is free.
        free: how many columns Lambda does not hold: the last one, or none.
        right: P = S U (t, m).
        weights: Q = W U (t, m), of W without its free column.
        diagonal: |B_j|^2 (m,).
    """

    squares: torch.Tensor
    basis: torch.Tensor
    free: int
    right: torch.Tensor
    weights: torch.Tensor
    diagonal: torch.Tensor

    @property
    def outputs(self) -> int:
        """Outputs t."""
        return len(self.right)

    @property
    def extremes(self) -> tuple[float, float]:
        """Squares of the smallest and the largest singular value of the window."""
        return float(self.squares.min()), float(self.squares.max())

    def trace(self, damping: torch.Tensor) -> torch.Tensor:
        """That of Z^T (G + Lambda I)^-1 Z for each Lambda (k,)."""
        return (self.diagonal * self.inverses(damping)).sum(1)

    def inverses(self, damping: torch.Tensor) -> torch.Tensor:
        """For each Lambda (k,) all d, (k, m)."""
        held = torch.ones_like(self.squares)
        held[len(held) - self.free :] = 0
        return 1 / (self.squares + damping[:, None] * held)

    def moved(self, weights: torch.Tensor, trial: float, damping: float) -> torch.Tensor:
        """W after a step with lambda = ``trial`` and Lambda = ``damping``, (t, m)."""
        inverses = self.inverses(torch.tensor([damping], dtype=torch.float64))
        return weights - ((self.right + trial * self.weights) * inverses) @ self.basis.T

    def _take_in(self, weights: torch.Tensor) -> torch.Tensor:
        """W in the basis."""
        held = weights.shape[1] - self.free
        return weights[:, :held] @ self.basis[:held]


class SampledGram(SampledDiagonal):
    """The new batch as Gram matrices.

    Args:
        window: G (m, m).
        gram: Z Z^T (m, m) of the new batch.
        cross: S (t, m).
        square: |R|^2.
        weights: W (t, m).
        free: 1 if Lambda does not hold the last column.
    """

    def __init__(
        self,
        window: torch.Tensor,
        gram: torch.Tensor,
        cross: torch.Tensor,
        square: float,
        weights: torch.Tensor,
        free: int = 0,
    ) -> None:
        held, self.free = len(window) - free, free
        border, corner = window[:held, held:], window[held:, held:].diagonal()
        squares, vectors = torch.linalg.eigh(window[:held, :held] - border / corner @ border.T)
        self.squares = torch.cat([squares.clamp_(min=0.0), corner])
        self.basis = _basis(vectors, border.T / corner[:, None])
        self.right, self.weights = cross @ self.basis, self._take_in(weights)
        self._rotated, self._square = self.basis.T @ gram @ self.basis, square
        self.diagonal = self._rotated.diagonal()

    def residuals(self, trials: torch.Tensor, damping: torch.Tensor) -> torch.Tensor:
        """The expanded square: rho - 2 d^T (p + l q) + d^T (E0 + l E1 + l^2 E2) d, not below 0."""
        p, q, d, trials = self.right, self.weights, self.inverses(damping), trials[:, None]
        mixed = p.T @ q
        e0, e1, e2 = (part * self._rotated for part in (p.T @ p, mixed + mixed.T, q.T @ q))
        linear = p.square().sum(0) + trials * (p * q).sum(0)
        quadratic = d @ e0 + trials * (d @ e1 + trials * (d @ e2))
        found: torch.Tensor = self._square + (d * (quadratic - 2 * linear)).sum(1)
        return found.clamp_(min=0.0)


class SampledTriangle(SampledDiagonal):
    """The new batch by its triangle: nothing is squared, and nothing cancels.

    Args:
        window: the triangles of the r batches before, one below the other (r m, m).
        new: of the new batch, with R^T as its right-hand sides.
        weights: W (t, m).
        free: 1 if Lambda does not hold the last column.
    """

    def __init__(self, window: torch.Tensor, new: Triangle, weights: torch.Tensor, free: int = 0) -> None:
        width, self.free = weights.shape[1], free
        held, last = torch.cat([window, new.factor]).split([width - free, free], dim=1)
        corner = last.square().sum(0)
        slopes = (last / corner).T @ held
        left, sigma, vectors = torch.linalg.svd(held - last @ slopes, full_matrices=False)
        self.squares, self.basis = torch.cat([sigma.square(), corner]), _basis(vectors.T, slopes)
        # R11 U, of which also the smallest columns are accurate; a batch of few samples leaves rows of 0 below.
        filled = int((new.factor.any(dim=1) * torch.arange(1, width + 1)).max())
        self._rows = torch.cat([left * sigma, last], dim=1)[-width:][:filled]
        self._target, below = new.right.split([filled, width - filled])
        self._tail = new.tail + float(below.square().sum())
        self.right, self.weights = self._target.T @ self._rows, self._take_in(weights)
        self.diagonal = self._rows.square().sum(0)

    def residuals(self, trials: torch.Tensor, damping: torch.Tensor) -> torch.Tensor:
        """|R12 - R11 X^T|^2 + tail."""
        scaled = self._rows * self.inverses(damping)[:, None]
        both = torch.cat([scaled, trials[:, None, None] * scaled], dim=2)  # one product for all trials
        explained = both @ torch.cat([self.right, self.weights], dim=1).T
        found: torch.Tensor = (self._target - explained).square().sum((1, 2))
        return found + self._tail


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

    def candidates(self, damping: float) -> torch.Tensor:
        """Trial values of lambda where Lambda is ``damping``.

        Both signs up to half of Lambda, so that it changes by half of itself at most, or positive ones in the bounds.
        """
        if not self.negative:
            return _geometric(self.least, self.most, self.count)
        end = min(damping / 2, self.most)
        positive = _geometric(min(SMALLEST_TRIAL, end), end, max(1, self.count // 2))
        return self.lifted(torch.cat([-positive.flip(0), positive]), damping)

    def lifted(self, trials: torch.Tensor, damping: float) -> torch.Tensor:
        """The trials, where Lambda would fall below its bound so much larger that it does not."""
        return torch.maximum(trials, torch.full_like(trials, self.least - damping))


def cross_validation(sampled: Sampled, trials: torch.Tensor, damping: float, rows: int) -> torch.Tensor:
    """The sGCV of each trial (k,); Lambda is ``damping`` before the step, N is ``rows``."""
    damped, count = damping + trials, rows * sampled.outputs
    freedom = (count - sampled.outputs * sampled.trace(damped)).clamp_(min=LEAST_FREEDOM * count)
    return sampled.residuals(trials, damped) / freedom.square()


def discrepancy(sampled: Sampled, trials: torch.Tensor, damping: float, expected: float) -> torch.Tensor:
    """How far the residual of each trial is from the ``expected`` one, squared (k,)."""
    return (sampled.residuals(trials, damping + trials) - expected).square()


def best(trials: torch.Tensor, criteria: torch.Tensor, bounds: Bounds, damping: float) -> float:
    """The trial with the least criterion; 0, or what lifts Lambda to its bound, where all are alike."""
    least, most = float(criteria.min()), float(criteria.max())
    if not most - least > FLAT * most:
        return max(0.0, bounds.least - damping)
    return float(trials[int(criteria.argmin())])


def _basis(vectors: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """Vectors (p, p) of the columns that are held, and what a free one takes over from each: -slopes (free, p)."""
    free = len(slopes)
    above = torch.cat([vectors, vectors.new_zeros(len(vectors), free)], dim=1)
    return torch.cat([above, torch.cat([-slopes @ vectors, torch.eye(free, dtype=vectors.dtype)], dim=1)])


def _geometric(low: float, high: float, count: int) -> torch.Tensor:
    exponents = torch.linspace(0.0, 1.0, count, dtype=torch.float64)
    return low * (high / low) ** exponents
