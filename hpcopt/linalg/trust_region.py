"""The trust-region subproblem, min g^T s + 1/2 s^T B s over |s| <= radius, solved exactly for limited-memory B.

In the eigenvectors of B the problem has r + 1 unknowns: the components of s along the basis and one factor for what is
orthogonal to it, where B is gamma I (Brust, Erway and Marcia 2017, "On solving L-SR1 trust-region subproblems",
arXiv 1506.07222, algorithm 1; Burdakov et al. 2017 for L-BFGS). The solution is characterised by (More and Sorensen
1983)   (B + sigma I) s = -g,   B + sigma I >= 0,   sigma >= 0,   sigma (radius - |s|) = 0.

All in float64. Shapes: r eigenvectors in the basis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

ITERATIONS = 100
"""Most Newton steps on the secular equation; it converges monotonically, in 2 to 6 of them as a rule."""

ACCURACY = 1e-12
"""Relative error of |s| = radius at which the secular equation counts as solved."""

HARD = 1e-12
"""A gradient component below this part of |g| counts as zero when deciding on the hard case."""


@dataclass(frozen=True)
class Subproblem:
    """The trust-region problem in the eigenvectors of B.

    Attributes:
        values: (r,) eigenvalues within the basis, ascending.
        gradient: (r,) components of g along the basis.
        gamma: eigenvalue orthogonal to the basis, above 0.
        rest: norm of the part of g that is orthogonal to the basis.
        radius: the bound on |s|.
    """

    values: torch.Tensor
    gradient: torch.Tensor
    gamma: float
    rest: float
    radius: float


@dataclass(frozen=True)
class Step:
    """The solution: s = basis @ components + factor * (the part of g orthogonal to the basis).

    Attributes:
        components: (r,) components of s along the basis.
        factor: -1 / (gamma + sigma).
        sigma: the multiplier of the bound.
        iterations: Newton steps taken.
    """

    components: torch.Tensor
    factor: float
    sigma: float
    iterations: int


def solve_subproblem(problem: Subproblem) -> Step:
    """The global minimiser of the model within the radius."""
    lowest = min(float(problem.values[0]), problem.gamma) if len(problem.values) else problem.gamma
    shifts = torch.cat([problem.values, torch.tensor([problem.gamma], dtype=torch.float64)]) - lowest
    sizes = torch.cat([problem.gradient.abs(), torch.tensor([problem.rest], dtype=torch.float64)])
    floor = max(lowest, 0.0)  # tau = sigma + lowest, at least this
    negligible = HARD * max(float(torch.linalg.vector_norm(sizes)), torch.finfo(torch.float64).tiny)
    sizes = torch.where(shifts + floor <= 0, torch.where(sizes > negligible, sizes, 0.0), sizes)
    if _length(sizes, shifts, floor) <= problem.radius:
        return _finish(problem, shifts, floor, lowest, 0)
    tau, iterations = _secular(sizes, shifts, floor, problem.radius)
    return _finish(problem, shifts, tau, lowest, iterations)


def _ratios(sizes: torch.Tensor, shifts: torch.Tensor, tau: float) -> torch.Tensor:
    """|g_i| / (shift_i + tau), with 0 / 0 = 0: the pseudo-inverse."""
    return torch.where(sizes > 0, sizes / (shifts + tau), 0.0)


def _length(sizes: torch.Tensor, shifts: torch.Tensor, tau: float) -> float:
    return float(torch.linalg.vector_norm(_ratios(sizes, shifts, tau)))


def _secular(sizes: torch.Tensor, shifts: torch.Tensor, floor: float, radius: float) -> tuple[float, int]:
    """Solve 1 / |s(tau)| = 1 / radius for tau > floor by Newton's method, safeguarded by a bracket.

    Counting from the lowest eigenvalue, tau = sigma + lowest, keeps all digits in the nearly hard case. The function is
    concave and increasing; the start is left of the root, from where Newton's method climbs monotonically
    (Conn, Gould and Toint 2000, section 7.3.2).
    """
    low = max(floor, float((sizes / radius - shifts).max()))
    high = max(low, float(torch.linalg.vector_norm(sizes)) / radius)
    tau = low
    for iteration in range(1, ITERATIONS + 1):
        ratios = _ratios(sizes, shifts, tau)
        length = float(torch.linalg.vector_norm(ratios))
        if abs(length - radius) <= ACCURACY * radius or high - low <= 1e-16 * high:
            return tau, iteration
        low, high = (tau, high) if length > radius else (low, tau)
        slope = float(torch.where(sizes > 0, ratios * ratios / (shifts + tau), 0.0).sum())
        tau += (length - radius) / radius * length * length / slope
        if not low < tau < high:
            tau = 0.5 * (low + high)
    return tau, ITERATIONS


def _finish(problem: Subproblem, shifts: torch.Tensor, tau: float, lowest: float, iterations: int) -> Step:
    """The step at tau; in the hard case a multiple of the lowest eigenvector brings it to the boundary."""
    sigma = max(tau - lowest, 0.0)
    divisors = shifts[:-1] + tau
    components = torch.where(divisors > 0, -problem.gradient / divisors, 0.0)
    factor = -1.0 / (float(shifts[-1]) + tau)
    if iterations == 0 and sigma > 0:
        square = float(components @ components) + (factor * problem.rest) ** 2
        missing = math.sqrt(max(problem.radius**2 - square, 0.0))
        components[0] -= math.copysign(missing, float(problem.gradient[0]))
    return Step(components, factor, sigma, iterations)
