"""Reductions by an operation of the caller's own, for what is neither a sum nor an extreme."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcopt.comm.communicator import Communicator
from hpcopt.comm.mpi_library import load_mpi
from hpcopt.errors import UsageError

if TYPE_CHECKING:
    from mpi4py import MPI
else:
    MPI = load_mpi()

Combine = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Two states (k,), which it leaves alone, to the state of both; associative, and it must not raise."""


def allreduce_by(comm: Communicator, buffer: np.ndarray, combine: Combine, label: str = "allreduce_by") -> np.ndarray:
    """Reduce ``buffer`` over all ranks in place by ``combine`` and return it. *Collective*.

    The whole buffer is one element of a derived datatype, so that ``combine`` never gets a fragment of it. The states
    of lower ranks come first.

    Args:
        comm: the ranks.
        buffer: float64 numbers (k,), contiguous, on the host; as many on every rank.
        combine: the operation.
        label: the ledger's account.

    Raises:
        UsageError: it is another kind of buffer; nothing was sent.
    """
    start = comm.start_call()
    if buffer.dtype != np.float64 or buffer.ndim != 1 or not buffer.flags.c_contiguous:
        raise UsageError(
            f"allreduce_by takes one contiguous row of float64 numbers, not {buffer.dtype} of shape {buffer.shape}."
        )

    def apply(lower: Any, higher: Any, _: MPI.Datatype) -> None:
        first, second = (np.frombuffer(part, dtype=np.float64) for part in (lower, higher))
        second[:] = combine(first, second)

    if comm.size > 1:
        element = MPI.DOUBLE.Create_contiguous(len(buffer)).Commit()
        operation = MPI.Op.Create(apply, commute=False)
        try:
            comm.mpi.Allreduce(MPI.IN_PLACE, (buffer, 1, element), operation)
        finally:
            operation.Free()
            element.Free()
    comm.ledger.add(label, buffer.nbytes, perf_counter() - start)
    return buffer
