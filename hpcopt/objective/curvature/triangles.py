"""Symmetric matrices as their lower triangles, row by row: half the numbers to keep and to send."""

from __future__ import annotations

import torch


def triangle_size(order: int) -> int:
    """How many numbers the lower triangle of a matrix of ``order`` rows has."""
    return order * (order + 1) // 2


def pack(matrix: torch.Tensor) -> torch.Tensor:
    """The lower triangle of ``matrix`` (m, m), a new vector (m (m + 1) / 2,)."""
    rows, columns = _lower(len(matrix), matrix.device)
    return matrix[rows, columns]


def unpack(triangle: torch.Tensor, order: int) -> torch.Tensor:
    """The symmetric matrix (m, m), m = ``order``, that ``pack`` made ``triangle`` of."""
    rows, columns = _lower(order, triangle.device)
    lower = triangle.new_zeros(order, order)
    lower[rows, columns] = triangle
    return lower + lower.tril(-1).T


def _lower(order: int, device: torch.device) -> torch.Tensor:
    """Rows and columns (2, m (m + 1) / 2) of the lower triangle: a mask would make the processor wait for a device."""
    return torch.tril_indices(order, order, device=device)
