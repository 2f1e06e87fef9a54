"""Conjugate gradients for (G + lambda P^-1) d = -g with all inner products of an iteration in one call.

After Chronopoulos and Gear 1989 (doi:10.1016/0377-0427(89)90045-9): the product is taken with the residual r instead of
the search direction v, and (G + lambda I) v follows from the products with the residuals by the recurrence of v itself.
The norm of the next residual is known from the same inner products, so that no product is spent on finding out that
the last one was enough. That is for P = I; another P takes the norm, r^T P r, in a call of its own, and (G + lambda
P^-1) P r is G P r + lambda r, so that P^-1 is never needed.

Where ``inner`` gives the same numbers on all ranks, all ranks take the same branches; where vectors are a rank's own,
nothing communicates. Letters: n variables, G, lambda, d, g, r, v as in Wang et al. 2018 (arXiv 1802.00130).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hpcopt.kernels.choice import kernels_on
from hpcopt.linalg.pairs import Inner

Precondition = Callable[[torch.Tensor], torch.Tensor]
"""r (n,) -> P r, a new vector; P is symmetric and positive definite."""

CANCELLATION = 100.0
"""A predicted square below this many roundings of the last one is mostly rounding, and computed instead."""


@dataclass(frozen=True)
class Solution:
    """The end of conjugate gradients.

    Attributes:
        direction: d (n,), with g^T d < 0 but for g = 0; that of the iteration before where the curvature along v is not
            above 0 (G has a negative eigenvalue, or rounding), and -P g where there was none before.
        iterations: products made.
        converged: whether |r| <= tolerance |g| for r = -g - (G + lambda P^-1) d.
        finite: False when a product or an inner product was not finite; d is that of the iteration before.
    """

    direction: torch.Tensor
    iterations: int
    converged: bool
    finite: bool = True


def always(iterations: int) -> bool:
    """Go on."""
    return True


def conjugate_gradients(
    product: Callable[[torch.Tensor], torch.Tensor],
    gradient: torch.Tensor,
    damping: float,
    inner: Inner,
    *,
    tolerance: float,
    most: int,
    goes_on: Callable[[int], bool] = always,
    local: bool = False,
    precondition: Precondition | None = None,
) -> Solution:
    """Solve (G + lambda P^-1) d = -g from d = 0, so that g^T d < 0 wherever it ends.

    Args:
        product: v (n,) -> G v, a vector of its own.
        gradient: g (n,), left as it is.
        damping: lambda.
        inner: X Y^T of stacked vectors, float64; called once an iteration, twice with ``precondition``.
        tolerance: the end is where |r| <= tolerance |g|, both in the metric of P.
        most: iterations, at least 1.
        goes_on: whether another iteration may be made after so many, at least 1; asked while there is a reason for one.
        local: nothing in it communicates, so that scalars may stay on a device that has kernels for it. Whether they
            have ended is then looked at every few iterations, ``inner`` is not called, and the product may be recorded:
            it takes no branch on the device's numbers.
        precondition: P r; None for P = I. Not with ``local``.
    """
    kernels = kernels_on(gradient.device, gradient.dtype).vectors if local else None
    iteration: Any
    if kernels:
        iteration = kernels.conjugate_steps(gradient, tolerance)
    elif precondition is None:
        iteration = _Iteration(gradient, inner, tolerance)
    else:
        iteration = _Preconditioned(precondition, gradient, inner, tolerance)
    for number in range(1, most + 1):
        again = iteration.advance(product, damping)
        if not again or number == most or not goes_on(number):
            break
    return Solution(iteration.direction, *iteration.end())


class _Iteration:
    """The vectors and scalars of the recurrence."""

    def __init__(self, gradient: torch.Tensor, inner: Inner, tolerance: float) -> None:
        self._inner, self._tolerance = inner, tolerance
        # Rows: r, the product with r, and s = (G + lambda I) v.
        self._rows = gradient.new_zeros(3, len(gradient))
        torch.neg(gradient, out=self._rows[0])
        self.residual = self.preconditioned = self._rows[0]
        self._v, self.direction = torch.zeros_like(gradient), torch.zeros_like(gradient)
        self._bound, self._square, self._step = -1.0, math.inf, math.inf
        self._eps = torch.finfo(gradient.dtype).eps
        self._made, self.converged, self.finite = 0, False, True

    def end(self) -> tuple[int, bool, bool]:
        """Iterations made, whether they converged, and whether all numbers were finite."""
        return self._made, self.converged, self.finite

    def advance(self, product: Callable[[torch.Tensor], torch.Tensor], damping: float) -> bool:
        """One iteration, with one product; whether another one makes sense."""
        self._made += 1
        torch.add(product(self.preconditioned), self.residual, alpha=damping, out=self._rows[1])
        gram = self._products()
        if not bool(gram.isfinite().all()):
            self.finite = False
            return False
        square, slope = float(gram[0, 0]), float(gram[0, 1])
        if self._bound < 0:
            self._bound = square * self._tolerance**2
        if square <= self._bound:
            self.converged = True
            return False
        beta = square / self._square
        curvature = slope - beta * square / self._step
        if not curvature > 0:
            if math.isinf(self._square):
                self.direction.copy_(self.preconditioned)
            return False
        step = square / curvature
        self._move(step, beta)
        self._square, self._step = square, step
        self.converged = self._next_square(gram, step, beta) <= self._bound
        return not self.converged

    def _products(self) -> torch.Tensor:
        """Inner products of P r with the rows; all of them where P = I."""
        return self._inner(self._rows, self._rows)

    def _move(self, step: float, beta: float) -> None:
        residual, product, s = self._rows
        self._v.mul_(beta).add_(self.preconditioned)
        s.mul_(beta).add_(product)
        self.direction.add_(self._v, alpha=step)
        residual.sub_(s, alpha=step)

    def _next_square(self, gram: torch.Tensor, step: float, beta: float) -> float:
        """r^T P r after the step, from the inner products before it; computed where that would be mostly rounding."""
        square = float(gram[0, 0])
        cross = float(gram[0, 1] + beta * gram[0, 2])
        length = float(gram[1, 1] + 2 * beta * gram[1, 2] + beta**2 * gram[2, 2])
        predicted = square - 2 * step * cross + step**2 * length
        if predicted > CANCELLATION * self._eps * square:
            return predicted
        return float(self._inner(self._rows[:1], self._rows[:1])[0, 0])


class _Preconditioned(_Iteration):
    """The recurrence with P r as direction in place of r."""

    def __init__(self, precondition: Precondition, gradient: torch.Tensor, inner: Inner, tolerance: float) -> None:
        super().__init__(gradient, inner, tolerance)
        self._precondition = precondition
        self.preconditioned = precondition(self.residual)

    def _products(self) -> torch.Tensor:
        return self._inner(self.preconditioned[None], self._rows[:2])

    def _next_square(self, gram: torch.Tensor, step: float, beta: float) -> float:
        self.preconditioned = self._precondition(self.residual)
        return float(self._inner(self.preconditioned[None], self._rows[:1])[0, 0])
