"""Steps of limited-memory models that stay within a radius, in coefficients over the pairs and the gradient.

Shapes: n parameters, m pairs at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hpcopt.linalg.compact import CompactModel, decompose
from hpcopt.linalg.lbfgs import two_loop
from hpcopt.linalg.lsr1 import lsr1_model
from hpcopt.linalg.pairs import PairMemory
from hpcopt.linalg.trust_region import Subproblem, solve_subproblem


@dataclass(frozen=True)
class Candidate:
    """A step s = rows^T coefficients + factor g, which may still have to be cut to the radius.

    Attributes:
        coefficients: (2 (m + 1),) over the rows of the ``PairMemory``.
        factor: coefficient of the gradient.
        sigma: multiplier of the bound: (B + sigma I) s = -g.
        iterations: Newton steps of the subproblem.
        model: the matrix B, where it is needed to judge the next pair.
    """

    coefficients: torch.Tensor
    factor: float
    sigma: float = 0.0
    iterations: int = 0
    model: CompactModel | None = None

    def predicted(self, slope: float, norm: float, part: float) -> float:
        """Decrease of the model for the step cut to ``part``, given ``slope`` = g^T s and ``norm`` = |s| of the whole.

        From s^T B s = -g^T s - sigma |s|^2; for part = 1 both terms of the sum are decreases, so nothing cancels.
        """
        return -slope * part * (1 - part / 2) + part * part / 2 * self.sigma * norm * norm


def curvature_outside(memory: PairMemory, share: float) -> float:
    """Gamma of B_0 = gamma I: ``share`` of the median |y| / |s| over the pairs; there must be one.

    The pairs come from steps that follow the steep directions, so their curvature says little about the rest of the
    space: there a network's loss is flat, and a gamma of that size (y^T y / s^T y, as for L-BFGS) makes the step creep
    and SR1 see negative curvature that is not there (Erway, Griffin, Marcia and Omheni 2020, arXiv 1807.00251, section
    3.2, bound gamma from above for this reason). With a small gamma it is the radius that bounds the step outside.
    """
    ss, _, yy = memory.blocks()
    return share * float((yy.diagonal() / ss.diagonal()).sqrt().median())


def lsr1_candidate(
    memory: PairMemory, products: torch.Tensor, square: float, radius: float, share: float, tolerance: float
) -> Candidate:
    """The exact trust-region step of the L-SR1 model; without pairs the steepest descent step to the radius.

    Args:
        memory: the pairs.
        products: (2 (m + 1),) inner products of the gradient with the rows of ``memory``.
        square: g^T g, above 0.
        radius: the bound on |s|.
        share: see ``curvature_outside``.
        tolerance: see ``decompose``.
    """
    gamma = curvature_outside(memory, share) if memory.stored else 0.0
    model = lsr1_model(memory, gamma or math.sqrt(square) / radius)
    spectrum = decompose(model, memory.gram, tolerance)
    along = spectrum.basis.T @ products
    rest = math.sqrt(max(square - float(along @ along), 0.0))
    step = solve_subproblem(Subproblem(spectrum.values, along, spectrum.gamma, rest, radius))
    coefficients = spectrum.basis @ (step.components - step.factor * along)
    return Candidate(coefficients, step.factor, step.sigma, step.iterations, model)


def lbfgs_candidate(memory: PairMemory, products: torch.Tensor, square: float, radius: float) -> Candidate:
    """The L-BFGS direction, to be cut to the radius; without pairs the steepest descent step to the radius."""
    if memory.stored:
        return Candidate(*two_loop(memory, products))
    return steepest_candidate(len(memory.gram), square, radius)


def steepest_candidate(rows: int, square: float, radius: float) -> Candidate:
    """The minimiser of the linear model within the radius: -radius g / |g|, with B = 0 and sigma = |g| / radius."""
    norm = math.sqrt(square)
    return Candidate(torch.zeros(rows, dtype=torch.float64), -radius / norm, norm / radius)
