"""A vector and float64 scalars in one reduction, the scalars exact whatever the precision of the vector.

Shapes: n numbers of a vector, k scalars, R ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.objective import exact_sum
from hpcopt.objective.protocol import Vector


class Packed:
    """A vector (n,) with scalars behind it in one buffer.

    Attributes:
        buffer: all of it.
        vector: its first n numbers.
    """

    def __init__(self, buffer: Vector, size: int) -> None:
        """Of a buffer that has room for the scalars behind its first ``size`` numbers."""
        # The views are made once: a buffer that is used again in every step would pay for them in each.
        self.buffer, self.vector, self._tail = buffer, buffer[:size], buffer[size:]
        self._host = None if buffer.is_cuda else self._tail.numpy()

    @classmethod
    def empty(cls, size: int, scalars: int, like: Vector) -> Packed:
        """Room for ``size`` numbers and ``scalars`` scalars, in precision and place of ``like``."""
        tail = scalars if like.dtype == torch.float64 else scalars * exact_sum.DIGITS
        return cls(torch.empty(size + tail, dtype=like.dtype, device=like.device), size)

    def write(self, scalars: Sequence[float]) -> None:
        """Put the scalars (k,) behind the vector."""
        numbers = _split(scalars, self.buffer.dtype)
        if self._host is None:
            self._tail.copy_(torch.tensor(numbers, dtype=self.buffer.dtype))
        else:
            self._host[:] = numbers  # by way of a new tensor it takes 25 times as long

    def read(self) -> list[float]:
        """The scalars (k,)."""
        return _join(self._tail.tolist(), self.buffer.dtype)

    def sum(self, comm: Communicator, scalars: Sequence[float], label: str) -> list[float]:
        """Sum the vector over the ranks, in place, and these scalars, which are returned. *Collective*, one reduction.

        The vector of a rank that is alone does not leave its device; the ledger counts the call all the same.

        Args:
            comm: the ranks.
            scalars: (k,) on every rank.
            label: the ledger's account.
        """
        if comm.size == 1:
            comm.ledger.add(label, self.buffer.nbytes, 0.0)
            return list(scalars)
        self.write(scalars)
        comm.allreduce(self.buffer, label=label)
        return self.read()


def tell(comm: Communicator, own: Sequence[float], label: str) -> list[list[float]]:
    """What every rank gives as ``own`` (k,), as many on all, by rank. *Collective*, one reduction of scalars."""
    count = len(own)
    told = [0.0] * (comm.size * count)
    told[comm.rank * count : (comm.rank + 1) * count] = own
    told = comm.reduce_scalars(told, label=label)
    return [told[first : first + count] for first in range(0, len(told), count)]


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
