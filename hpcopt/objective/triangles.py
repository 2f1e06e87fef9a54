"""Symmetric matrices as their lower triangles, row by row: half the numbers to keep and to send."""

from __future__ import annotations

import torch


def triangle_size(order: int) -> int:
    """How many numbers the lower triangle of a matrix of ``order`` rows has."""
    return order * (order + 1) // 2


def pack(matrix: torch.Tensor) -> torch.Tensor:
    """The lower triangle of ``matrix`` (m, m), a new vector (m (m + 1) / 2,)."""
    return matrix.masked_select(_lower(len(matrix), matrix.device))


def unpack(triangle: torch.Tensor, order: int) -> torch.Tensor:
    """The symmetric matrix (m, m), m = ``order``, that ``pack`` made ``triangle`` of."""
    lower = triangle.new_zeros(order, order).masked_scatter_(_lower(order, triangle.device), triangle)
    return lower + lower.tril(-1).T


def _lower(order: int, device: torch.device) -> torch.Tensor:
    return torch.ones(order, order, dtype=torch.bool, device=device).tril_()
