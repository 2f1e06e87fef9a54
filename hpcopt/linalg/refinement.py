"""Iterative refinement of (G + lambda I) d = -g where products with G are cheap only with a rounded H in its place.

    (H + lambda I) e = r   by conjugate gradients,    q = (G + lambda I) e,    alpha = r^T e / e^T q
    d <- d + alpha e,      r <- r - alpha q           from d = 0, r = -g

The residual is that of G itself, with one product a round, so that d is as exact as ``tolerance`` asks although every
product within a round has the error of H (Carson and Higham 2018, doi:10.1137/17M1140819, of factorisations in few
digits). alpha minimises the model g^T d + 1/2 d^T (G + lambda I) d along e: it falls in every round, however far H is
from G, and from 0, so that g^T d < 0. Letters are those of ``hpcopt.linalg.conjugate_gradient``; n variables.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from hpcopt.linalg.conjugate_gradient import Solution, conjugate_gradients
from hpcopt.linalg.pairs import Inner

ROUNDING = torch.finfo(torch.bfloat16).eps
"""Of factors in bfloat16. The least tolerance of a round: iterations that go further solve for the rounding of H."""

STALLED = 0.5
"""A round that leaves more than this part of |r| is the last one: H tells too little of G there."""


def refined(
    rounded: Callable[[torch.Tensor], torch.Tensor],
    exact: Callable[[torch.Tensor], torch.Tensor],
    gradient: torch.Tensor,
    damping: float,
    inner: Inner,
    *,
    tolerance: float,
    most: int,
) -> Solution:
    """Solve (G + lambda I) d = -g by rounds of conjugate gradients with H.

    Args:
        rounded: v (n,) -> H v, a vector of its own.
        exact: v (n,) -> G v, likewise; called once a round.
        gradient: g (n,), left as it is.
        damping: lambda.
        inner: X Y^T of stacked vectors, float64; its results decide.
        tolerance: the end is where |r| <= tolerance |g|.
        most: iterations of all rounds together, at least 1.

    Returns:
        d, converged or not by the exact products; ``iterations`` are those of conjugate gradients, all rounds together.
    """
    direction, residual, made = torch.zeros_like(gradient), -gradient, 0
    square = _square(residual, inner)
    bound = square * tolerance**2
    while made < most and square > bound:
        wanted = max(math.sqrt(bound / square), ROUNDING)
        found = conjugate_gradients(rounded, -residual, damping, inner, tolerance=wanted, most=most - made)
        made += found.iterations
        product = exact(found.direction).add_(found.direction, alpha=damping)
        slope, bend = inner(torch.stack([residual, product]), found.direction[None])[:, 0].tolist()
        if not (found.finite and math.isfinite(slope) and math.isfinite(bend)):
            return Solution(direction, made, False, finite=False)
        step = slope / bend if bend > 0 else 1.0
        direction.add_(found.direction, alpha=step)
        residual.sub_(product, alpha=step)
        before, square = square, _square(residual, inner)
        if not (found.converged and bend > 0 and square <= STALLED**2 * before):
            break
    return Solution(direction, made, square <= bound)


def _square(vector: torch.Tensor, inner: Inner) -> float:
    return float(inner(vector[None], vector[None])[0, 0])
