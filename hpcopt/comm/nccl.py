"""Sums of large tensors by NCCL, from device to device, where every rank has a GPU of its own; the rest stays with MPI.

NCCL's communicators are beside those of MPI, one for each group of ranks. A sum is work on torch's current stream, like
a kernel: the call returns before it is done, and what follows on that stream has the result.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from hpcopt.comm.mpi_library import load_mpi
from hpcopt.errors import UsageError

if TYPE_CHECKING:
    from mpi4py import MPI
else:
    MPI = load_mpi()

LEAST_BYTES = 1 << 20
"""Of a tensor that goes by NCCL; what is shorter waits for latency, and is MPI's."""

_TYPES = {torch.float32: "NCCL_FLOAT32", torch.float64: "NCCL_FLOAT64"}


def load_nccl() -> Any:
    """CuPy's module of NCCL.

    Raises:
        ImportError: there is no CuPy here, or it finds no library of NCCL.
    """
    module = import_module("cupy.cuda.nccl")
    if not module.available:
        raise ImportError("CuPy finds no NCCL library")
    return module


class Nccl:
    """Sums over the ranks of one MPI communicator.

    NCCL's own is made at the first sum, by all ranks together.

    Args:
        module: CuPy's ``cupy.cuda.nccl``.
        mpi: the ranks.
        device: of this rank; no other rank has it.
    """

    def __init__(self, module: Any, mpi: MPI.Comm, device: torch.device) -> None:
        self._module, self._mpi, self._device = module, mpi, device
        self._group: Any = None

    def beside(self, mpi: MPI.Comm) -> Nccl:
        """The same for a group of these ranks."""
        return Nccl(self._module, mpi, self._device)

    def takes(self, buffer: Any, op: str) -> bool:
        """Whether a reduction goes this way; the same on all ranks, as their buffers are alike."""
        return (
            op == "sum"
            and isinstance(buffer, torch.Tensor)
            and buffer.device == self._device
            and buffer.dtype in _TYPES
            and buffer.nbytes >= LEAST_BYTES
            and buffer.is_contiguous()
        )

    def sum(self, tensor: torch.Tensor) -> None:
        """Sum ``tensor`` over the ranks in place, on torch's current stream. *Collective*."""
        if self._group is None:
            self._group = self._make()
        module, address = self._module, tensor.data_ptr()
        kind = getattr(module, _TYPES[tensor.dtype])
        self._group.allReduce(address, address, tensor.numel(), kind, module.NCCL_SUM, self._stream())

    def free(self) -> None:
        """Give NCCL's communicator back. Local."""
        if self._group is not None:
            self._group.destroy()
            self._group = None

    def _make(self) -> Any:
        """NCCL's communicator of the ranks. *Collective*."""
        number = self._mpi.bcast(self._module.get_unique_id() if self._mpi.rank == 0 else None, 0)
        return self._module.NcclCommunicator(self._mpi.size, number, self._mpi.rank)

    def _stream(self) -> int:
        return int(torch.cuda.current_stream(self._device).cuda_stream) if self._device.type == "cuda" else 0


def sums_are_right(nccl: Nccl, size: int, rank: int, device: torch.device) -> bool:
    """Whether a sum in each precision is what it must be, on this rank. *Collective*."""
    for dtype in _TYPES:
        tensor = torch.full((1000,), rank + 1.0, dtype=dtype, device=device)
        nccl.sum(tensor)
        if not bool((tensor == size * (size + 1) / 2).all()):
            return False
    return True


def refusal(asked: bool | str, why: str) -> str:
    """What is said where NCCL is not used, for the same reason on all ranks.

    Raises:
        UsageError: on all ranks, as it was asked for by ``True``.
    """
    if asked is True:
        advice = 'Use "auto", which then leaves all sums to MPI, or false.'
        raise UsageError(f"parallel.nccl = true, but {why}. {advice}", collective=True)
    return f"MPI: {why}"
