"""A vector and float64 scalars in one reduction, the scalars exact whatever the precision of the vector.

Shapes: n numbers of a vector, k scalars, R ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.objective import exact_sum
from hpcopt.objective.protocol import Vector


def new_buffer(size: int, scalars: int, like: Vector) -> Vector:
    """Room for a vector of ``size`` numbers with ``scalars`` scalars behind it, in precision and place of ``like``."""
    tail = scalars if like.dtype == torch.float64 else scalars * exact_sum.DIGITS
    return torch.empty(size + tail, dtype=like.dtype, device=like.device)


def sum_with_scalars(
    comm: Communicator, buffer: Vector, size: int, scalars: Sequence[float], label: str
) -> list[float]:
    """Sum a buffer of ``new_buffer`` over the ranks, in place, and with it the scalars. *Collective*, one reduction.

    Args:
        comm: the ranks.
        buffer: its first ``size`` numbers are the vector; the scalars are written behind them.
        size: n.
        scalars: as many on every rank as ``new_buffer`` was told of.
        label: the ledger's account.

    Returns:
        The sums of the scalars (k,).
    """
    numbers = _split(scalars, buffer.dtype)
    if buffer.is_cuda:
        buffer[size:] = torch.tensor(numbers, dtype=buffer.dtype, device=buffer.device)
    else:
        buffer[size:].numpy()[:] = numbers  # by way of a new tensor it takes 25 times as long
    comm.allreduce(buffer, label=label)
    return _join(buffer[size:].tolist(), buffer.dtype)


def combine(
    comm: Communicator, vector: Vector, scalars: Sequence[float], own: Sequence[float] = ()
) -> tuple[Vector, list[float], torch.Tensor]:
    """Sums over the ranks of ``vector`` (n,), in a new one, and of the scalars. *Collective*, one reduction.

    Returns:
        Both sums, and what every rank gave as ``own``, shape (R, len(own)) on the CPU, rounded to the vector's
        precision: each rank tells its own in a row that the others fill with zeros.
    """
    told = torch.zeros(comm.size, len(own), dtype=vector.dtype)
    told[comm.rank] = torch.tensor(own, dtype=vector.dtype)
    numbers = torch.tensor(_split(scalars, vector.dtype), dtype=vector.dtype)
    buffer = torch.cat([vector, torch.cat([numbers, told.flatten()]).to(vector.device)])
    comm.allreduce(buffer, label="step")
    sums, told = buffer[len(vector) :].cpu().split([len(numbers), told.numel()])
    return buffer[: len(vector)], _join(sums.tolist(), vector.dtype), told.view(comm.size, len(own))


def _split(scalars: Sequence[float], dtype: torch.dtype) -> Sequence[float]:
    return scalars if dtype == torch.float64 else exact_sum.split_all(scalars)


def _join(numbers: list[float], dtype: torch.dtype) -> list[float]:
    return numbers if dtype == torch.float64 else exact_sum.join_all(numbers)
