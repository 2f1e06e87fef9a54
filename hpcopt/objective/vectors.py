"""Inner products of long vectors, of float32 ones accumulated in float64.

Shapes: X (k, n), Y (l, n).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hpcopt.kernels.choice import kernels_on

if TYPE_CHECKING:
    from hpcopt.comm.communicator import Communicator

_BLOCK = 1 << 16  # columns of a product summed in the vectors' own precision before float64 takes over
_DOT_BLOCK = 1 << 18  # likewise for one pair of vectors, where BLAS keeps many partial sums itself


def inner(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """X Y^T in float64 on the CPU, shape (k, l): products in the vectors' precision, block sums in float64."""
    if x.is_cuda:
        return _on_device(x, y).cpu()
    if x.dtype == torch.float64 or x.shape[1] <= _BLOCK:
        return (x @ y.T).cpu().double()
    total = torch.zeros(x.shape[0], y.shape[0], dtype=torch.float64, device=x.device)
    for start in range(0, x.shape[1], _BLOCK):
        total += x[:, start : start + _BLOCK] @ y[:, start : start + _BLOCK].T
    return total.cpu()


def _on_device(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """As ``inner``, all blocks at once: (k, l) on the device, which waits for nothing in between."""
    kernels = kernels_on(x.device, x.dtype).vectors
    if kernels is not None:
        return kernels.inner(x.contiguous(), y.contiguous())
    whole = x.shape[1] // _BLOCK * _BLOCK
    blocks = [rows[:, :whole].unflatten(1, (-1, _BLOCK)).transpose(0, 1) for rows in (x, y)]
    total = torch.bmm(blocks[0], blocks[1].mT).sum(0, dtype=torch.float64)
    return total.add_(x[:, whole:] @ y[:, whole:].T)


def dot(x: torch.Tensor, y: torch.Tensor) -> float:
    """x^T y of two vectors (n,), as ``inner``."""
    if x.is_cuda:
        return float(inner(x[None], y[None]))
    if x.numel() <= _DOT_BLOCK or x.dtype == torch.float64:
        return torch.dot(x, y).item()
    parts = [torch.dot(a, b) for a, b in zip(x.split(_DOT_BLOCK), y.split(_DOT_BLOCK), strict=True)]
    return float(torch.stack(parts).sum(dtype=torch.float64))


def matmul(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``left`` (a, b) times ``right`` (b, c), a new tensor on their device that does not know how it was made.

    On a processor by numpy, which forms one half of A^T A only and took half as long for tall matrices in float64.
    """
    if left.is_cuda:
        return left.detach() @ right.detach()
    return torch.from_numpy(left.detach().numpy() @ right.detach().numpy())


class OwnVectors:
    """What an objective of this rank alone does with its vectors of n numbers."""

    def dot(self, x: torch.Tensor, y: torch.Tensor) -> float:
        """x^T y, accumulated in float64; local."""
        return dot(x, y)

    def inner(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """X Y^T for stacked vectors (k, n) and (l, n), float64 on the CPU; local."""
        return inner(x, y)

    def agree(self, *values: float) -> tuple[float, ...]:
        """The values: this rank decides alone."""
        return values


class WholeVectors(OwnVectors):
    """The same where every rank holds them whole: only decisions need the others.

    Attributes:
        comm: the ranks.
    """

    comm: Communicator

    def agree(self, *values: float) -> tuple[float, ...]:
        """Rank 0's numbers on all ranks. *Collective*."""
        if self.comm.size == 1:
            return values
        return tuple(self.comm.broadcast_scalars(values))
