"""Inner products of many vectors: those of whole vectors, and agreed on."""

from __future__ import annotations

import pytest
import torch

from hpcopt.solvers import products
from tests.support.objectives import QuadraticObjective


def vectors() -> torch.Tensor:
    return torch.randn(3, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_products_are_those_of_whole_vectors() -> None:
    x, y, z = vectors()
    found = products.products(QuadraticObjective(12), [(x, y), (z, z), (y, z)])
    assert found == pytest.approx([float(x @ y), float(z @ z), float(y @ z)])


def test_what_decides_is_what_the_ranks_agreed_on() -> None:
    class Agreeing(QuadraticObjective):
        def agree(self, *values: float) -> tuple[float, ...]:
            return tuple(value + 1 for value in values)

    x = torch.ones(4, dtype=torch.float64)
    assert products.products(Agreeing(4), [(x, x), (x, 2 * x)]) == [5.0, 9.0]


def test_a_rank_without_variables_has_products_too() -> None:
    x = torch.zeros(0, dtype=torch.float64)
    assert products.products(QuadraticObjective(4), [(x, x)]) == [0.0]
