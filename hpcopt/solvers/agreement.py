"""Inner products that are the same on all ranks to the last bit, so that all ranks take the same branch on them.

Replicated vectors are equal on all ranks, but their products need not be: the order of summation depends on the
processor, the threads and the alignment of memory. One small broadcast settles it. Where variables are partitioned the
products are a reduction's, which has the same bits on all ranks already.
"""

from __future__ import annotations

import torch

from hpcopt.linalg.pairs import Inner, PairMemory
from hpcopt.objective.protocol import Objective, Vector
from hpcopt.solvers.solver import State


def agreed_inner(objective: Objective) -> Inner:
    """``objective.inner`` with the same result on all ranks (*collective*)."""

    def inner(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return agreed_products(objective, objective.inner(x, y))

    return inner


def agreed_products(objective: Objective, products: torch.Tensor) -> torch.Tensor:
    """What ``objective.inner`` gave, the same on all ranks (*collective* where it was not reduced)."""
    if getattr(objective, "reduces_products", False):
        return products
    return torch.tensor(objective.agree(*products.flatten().tolist()), dtype=torch.float64).view(products.shape)


def agreed_dot(objective: Objective, x: Vector, y: Vector) -> float:
    """``objective.dot`` with the same result on all ranks (*collective*)."""
    product = objective.dot(x, y)
    return product if getattr(objective, "reduces_products", False) else objective.agree(product)[0]


def agreed_coefficients(objective: Objective, coefficients: torch.Tensor, *scalars: float) -> tuple[torch.Tensor, ...]:
    """Coefficients (k,) and scalars computed from agreed numbers, once more agreed (*collective*).

    The small eigenvalue problems in between may round differently on processors of different kinds.

    Returns:
        The coefficients and one float64 tensor with the scalars.
    """
    agreed = torch.tensor(objective.agree(*coefficients.tolist(), *scalars), dtype=torch.float64)
    return agreed[: len(coefficients)], agreed[len(coefficients) :]


def memory_in(state: State) -> PairMemory:
    """The pairs kept in a solver's state; its tensors are those of the state."""
    return PairMemory(state["pairs"], state["gram"], int(state["pairs_stored"]), int(state["pairs_free"]))  # type: ignore[arg-type]


def memory_to(state: State, memory: PairMemory) -> None:
    """Put the pairs in a solver's state."""
    state |= {
        "pairs": memory.rows,
        "gram": memory.gram,
        "pairs_stored": memory.stored,
        "pairs_free": memory.free,
    }
