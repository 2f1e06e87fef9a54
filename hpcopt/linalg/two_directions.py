"""The best combination of a few directions on a quadratic model: min over b of b^T s + 1/2 b^T A b.

With the directions d and dbar, s = (g^T d, g^T dbar) and A = (d, dbar)^T G (d, dbar). Two directions, the new and the
previous one, are the sub-problem of Wang, Huang and Lin 2015 (doi:10.1162/NECO_a_00751). All in float64.
"""

from __future__ import annotations

import math

import torch

ROUNDINGS = 100.0
"""A determinant below this many roundings of a11 a22 means that both directions are the same to the model."""


def combination(slopes: torch.Tensor, curvatures: torch.Tensor, precision: torch.dtype = torch.float64) -> torch.Tensor:
    """The coefficients b of one direction or two, (1,) or (2,).

    Where two directions are the same to the model the second gets 0; where the model has no minimum along the first,
    that one gets 1.

    Args:
        slopes: s, (1,) or (2,).
        curvatures: A, (1, 1) or (2, 2), symmetric.
        precision: in which the products with G were made.
    """
    best = torch.zeros_like(slopes)
    first = float(curvatures[0, 0])
    best[0] = -float(slopes[0]) / first if first > 0 else 1.0
    if len(slopes) == 2 and first > 0:
        cross, second = float(curvatures[0, 1]), float(curvatures[1, 1])
        determinant = first * second - cross * cross
        if determinant > ROUNDINGS * torch.finfo(precision).eps * first * second and math.isfinite(determinant):
            best[0] = (cross * float(slopes[1]) - second * float(slopes[0])) / determinant
            best[1] = (cross * float(slopes[0]) - first * float(slopes[1])) / determinant
    return best


def decrease(slopes: torch.Tensor, curvatures: torch.Tensor, coefficients: torch.Tensor) -> float:
    """What the model promises for the coefficients b: -(b^T s + 1/2 b^T A b)."""
    return -float(coefficients @ slopes + 0.5 * coefficients @ curvatures @ coefficients)
