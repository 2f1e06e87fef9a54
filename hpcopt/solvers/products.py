"""Many inner products of long vectors in one sweep over them and one reduction, the same on all ranks.

Shapes: n parameters of this rank, k products.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hpcopt.kernels.choice import sweeps_on
from hpcopt.kernels.sweeps import Parts
from hpcopt.objective.protocol import Objective, Vector
from hpcopt.solvers.agreement import agreed_products


def totals(objective: Objective, *sweeps: Parts) -> list[float]:
    """Sums over pieces and ranks, float64. *Collective*: one small reduction where variables are partitioned.

    Args:
        objective: knows how variables are spread.
        sweeps: of each, for every piece, k tensors of no dimension.
    """
    stacks = [torch.stack([torch.stack(list(part)) for part in parts]) for parts in sweeps]
    sums = torch.cat([each.sum(0, dtype=torch.float64) for each in stacks])
    # Products of partial sums with 1 are reduced as those of vectors are: not at all where all ranks hold all of w.
    reduced = objective.inner(sums[:, None], torch.ones_like(sums[:1, None]))
    found: list[float] = agreed_products(objective, reduced[:, 0]).tolist()
    return found


def products(objective: Objective, pairs: Sequence[tuple[Vector, Vector]]) -> list[float]:
    """x^T y for every pair of vectors (n,). *Collective*, as ``totals``."""
    return totals(objective, sweeps_on(pairs[0][0]).products(pairs))
