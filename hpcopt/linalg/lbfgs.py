"""The limited-memory BFGS direction by the two-loop recursion on inner products alone (see ``pairs``).

Shapes: n parameters, m pairs at most.
"""

from __future__ import annotations

import torch

from hpcopt.linalg.pairs import PairMemory

SKIP = 1e-8
"""A pair is skipped when s^T y <= SKIP |s| |y|: the matrix would not stay positive definite."""


def lbfgs_accepts(memory: PairMemory) -> bool:
    """Whether the pair in the free slot of ``memory`` has enough positive curvature."""
    ss, sy, yy = memory.offered()
    return sy > SKIP * (ss * yy) ** 0.5 and sy > 0


def lbfgs_scale(memory: PairMemory) -> float:
    """Gamma = y^T y / s^T y of the newest pair (Nocedal and Wright 2006, eq. 7.20): B_0 = gamma I. 1 without pairs."""
    if not memory.stored:
        return 1.0
    s, y = 2 * memory.slots[-1], 2 * memory.slots[-1] + 1
    return float(memory.gram[y, y] / memory.gram[s, y])


def two_loop(memory: PairMemory, products: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The quasi-Newton direction -H g (Nocedal and Wright 2006, algorithm 7.4), in coefficients.

    Args:
        memory: the pairs; all have s^T y > 0.
        products: (2 (m + 1),) inner products of g with the rows of ``memory``.

    Returns:
        Coefficients (2 (m + 1),) over the rows and the coefficient of g: -H g = rows^T coefficients + factor g.
    """
    gram = memory.gram
    coefficients = torch.zeros(len(gram), dtype=torch.float64)
    factor = -1.0
    weights = {}
    for slot in reversed(memory.slots):
        s, y = 2 * slot, 2 * slot + 1
        weights[slot] = float((gram[s] @ coefficients + factor * products[s]) / gram[s, y])
        coefficients[y] -= weights[slot]
    gamma = lbfgs_scale(memory)
    coefficients /= gamma
    factor /= gamma
    for slot in memory.slots:
        s, y = 2 * slot, 2 * slot + 1
        weight = float((gram[y] @ coefficients + factor * products[y]) / gram[s, y])
        coefficients[s] += weights[slot] - weight
    return coefficients, factor
