"""Inner products of long float32 vectors, accumulated in float64.

Shapes: X (k, n), Y (l, n).
"""

from __future__ import annotations

import torch

_BLOCK = 1 << 16  # columns of a product summed in the vectors' own precision before float64 takes over
_DOT_BLOCK = 1 << 18  # likewise for one pair of vectors, where BLAS keeps many partial sums itself


def inner(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """X Y^T in float64 on the CPU, shape (k, l): products in the vectors' precision, block sums in float64."""
    if x.dtype == torch.float64:
        return (x @ y.T).cpu()
    total = torch.zeros(x.shape[0], y.shape[0], dtype=torch.float64, device=x.device)
    for start in range(0, x.shape[1], _BLOCK):
        total += x[:, start : start + _BLOCK] @ y[:, start : start + _BLOCK].T
    return total.cpu()


def dot(x: torch.Tensor, y: torch.Tensor) -> float:
    """x^T y of two vectors (n,), as ``inner``."""
    if x.dtype == torch.float64:
        return float(torch.dot(x, y))
    parts = [torch.dot(a, b) for a, b in zip(x.split(_DOT_BLOCK), y.split(_DOT_BLOCK), strict=True)]
    return float(torch.stack(parts).sum(dtype=torch.float64)) if parts else 0.0
