"""Symmetric matrices in half the numbers."""

from __future__ import annotations

import pytest
import torch

from hpcopt.objective.curvature.triangles import pack, triangle_size, unpack


@pytest.mark.parametrize("order", [1, 2, 7])
def test_a_symmetric_matrix_comes_back(order: int) -> None:
    rows = torch.randn(order, order, generator=torch.Generator().manual_seed(0))
    matrix = rows + rows.T
    packed = pack(matrix)
    assert packed.shape == (triangle_size(order),)
    assert torch.equal(unpack(packed, order), matrix)


def test_the_triangle_is_the_lower_one_row_by_row() -> None:
    assert pack(torch.arange(9).view(3, 3)).tolist() == [0, 3, 4, 6, 7, 8]
