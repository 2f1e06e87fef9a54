"""From a torch, CuPy or NumPy buffer to memory that MPI may read and write, and back.

Host memory is used where it lies. Memory of a device is copied to a host buffer (pinned for CUDA, kept for the next
call) with the stream synchronised, unless the MPI library is known to read device memory itself (``gpu_aware``).
Every check of type, order and precision is made here, before any message is sent.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from hpcopt.comm.mpi_library import load_mpi
from hpcopt.errors import UsageError

if TYPE_CHECKING:
    from mpi4py import MPI
else:
    MPI = load_mpi()

_TORCH_TYPES: dict[torch.dtype, tuple[MPI.Datatype, int]] = {
    torch.float32: (MPI.FLOAT, 4),
    torch.float64: (MPI.DOUBLE, 8),
    torch.int32: (MPI.INT32_T, 4),
    torch.int64: (MPI.INT64_T, 8),
    torch.uint8: (MPI.UINT8_T, 1),
    torch.uint64: (MPI.UINT64_T, 8),
}
_NUMPY_TYPES: dict[np.dtype[Any], tuple[MPI.Datatype, int]] = {
    np.dtype(str(dtype).removeprefix("torch.")): entry for dtype, entry in _TORCH_TYPES.items()
}
_KNOWN = "float32, float64, int32, int64, uint8 and uint64"


class Staged:
    """A buffer as MPI sees it.

    Attributes:
        memory: bytes for MPI, on the host (on the device when MPI is GPU-aware).
        count: number of elements.
        datatype: the MPI datatype of one element.
        itemsize: bytes of one element.
        nbytes: ``count * itemsize``.
        copy: the host copy of a device buffer, None when the buffer is used in place.
    """

    __slots__ = ("copy", "count", "datatype", "itemsize", "memory", "nbytes")

    def __init__(
        self, memory: MPI.buffer, count: int, datatype: MPI.Datatype, itemsize: int, copy: HostCopy | None = None
    ) -> None:
        """Bundle what the collectives need."""
        self.memory = memory
        self.count = count
        self.datatype = datatype
        self.itemsize = itemsize
        self.nbytes = count * itemsize
        self.copy = copy

    def finish(self, store: bool = True) -> None:
        """Copy the result back to the device (``store``) and give the host buffer back. Local."""
        if self.copy is not None:
            if store:
                self.copy.store()
            self.copy.release()
            self.copy = None


class HostCopy:
    """A host buffer standing in for a tensor on a device; pinned memory when that is a CUDA device."""

    def __init__(self, pool: HostPool, tensor: torch.Tensor) -> None:
        """Reserve host memory for ``tensor``; nothing is copied yet."""
        nbytes = tensor.numel() * tensor.element_size()
        self._pool, self._key, self._nbytes = pool, "pinned" if tensor.is_cuda else "pageable", nbytes
        self._raw = pool.take_torch(self._key, nbytes)
        self._tensor = tensor.detach().view(-1)
        self._host = self._raw[:nbytes].view(tensor.dtype)

    def load(self) -> None:
        """Device to host; waits for the current stream, and so for the kernels that fill the tensor."""
        self._host.copy_(self._tensor, non_blocking=self._tensor.is_cuda)
        synchronize(self._tensor)

    def store(self) -> None:
        """Host to device on the current stream; waits, as the host buffer goes back to the pool."""
        self._tensor.copy_(self._host, non_blocking=self._tensor.is_cuda)
        synchronize(self._tensor)

    def release(self) -> None:
        """Give the host buffer back to the pool."""
        self._pool.give(self._key, self._raw)

    def memory(self) -> MPI.buffer:
        """The host bytes for MPI."""
        return MPI.buffer.frombuffer(np.asarray(self._raw)[: self._nbytes])


class HostPool:
    """Host buffers kept between calls: pinning memory costs far more than a small copy.

    At most ``limit`` buffers a kind are kept; buffers in flight are not in the pool, so that several non-blocking
    calls never share one.
    """

    def __init__(self, limit: int = 4) -> None:
        """Start empty."""
        self._limit = limit
        self._free: dict[str, list[Any]] = {}

    def take(self, key: str, nbytes: int) -> Any | None:
        """The smallest kept buffer of at least ``nbytes``, or None."""
        free = self._free.get(key, [])
        fitting = [i for i, raw in enumerate(free) if len(raw) >= nbytes]
        return free.pop(min(fitting, key=lambda i: len(free[i]))) if fitting else None

    def take_torch(self, key: str, nbytes: int) -> torch.Tensor:
        """A uint8 tensor of at least ``nbytes``, in pinned memory for the key "pinned"."""
        raw: torch.Tensor | None = self.take(key, nbytes)
        return torch.empty(max(nbytes, 1), dtype=torch.uint8, pin_memory=key == "pinned") if raw is None else raw

    def give(self, key: str, raw: Any) -> None:
        """Keep ``raw`` for later; beyond the limit the smallest one is dropped."""
        free = self._free.setdefault(key, [])
        free.append(raw)
        if len(free) > self._limit:
            del free[min(range(len(free)), key=lambda i: len(free[i]))]


def stage(buffer: Any, pool: HostPool, gpu_aware: bool = False, load: bool = True, write: bool = True) -> Staged:
    """Make ``buffer`` ready for MPI. Local.

    Args:
        buffer: torch tensor, NumPy array or CuPy array, row-major contiguous, any shape.
        pool: where host copies of device buffers come from.
        gpu_aware: hand device addresses to MPI.
        load: copy the contents of a device buffer to the host (False when MPI only writes to it).
        write: MPI will write to the buffer, which must not be read-only.

    Raises:
        UsageError: not a buffer, not row-major contiguous, read-only, or of a type that is not reduced exactly.
    """
    if isinstance(buffer, torch.Tensor):
        # Few questions to torch, as each costs microseconds when the last message has emptied the caches.
        entry = torch_type(buffer)
        if buffer.is_cpu:
            (datatype, itemsize), count = entry, buffer.numel()
            return Staged(MPI.buffer.fromaddress(buffer.data_ptr(), count * itemsize), count, datatype, itemsize)
        return _stage_device(buffer, entry, pool, gpu_aware and buffer.is_cuda, load)
    if isinstance(buffer, np.ndarray):
        kind = _NUMPY_TYPES.get(buffer.dtype)
        flags = buffer.flags
        if kind is None or not flags.c_contiguous or (write and not flags.writeable):
            raise UsageError(_refusal_array(buffer))
        return Staged(MPI.buffer.frombuffer(buffer, readonly=not write), buffer.size, *kind)
    if is_cupy(buffer):
        return stage(as_tensor(buffer), pool, gpu_aware, load, write)
    raise UsageError(
        f"a buffer for communication must be a torch tensor, a NumPy array or a CuPy array, but a "
        f"{type(buffer).__name__} was given; pass Python numbers to reduce_scalars or broadcast_scalars."
    )


def torch_type(tensor: torch.Tensor) -> tuple[MPI.Datatype, int]:
    """MPI's type of the elements, and their bytes.

    Raises:
        UsageError: not row-major contiguous, or of a type that is not reduced exactly.
    """
    entry = _TORCH_TYPES.get(tensor.dtype)
    # A sparse layout has no strides to ask for.
    if entry is None or tensor.layout is not torch.strided or not tensor.is_contiguous():
        raise UsageError(_refusal_torch(tensor))
    return entry


def _stage_device(
    tensor: torch.Tensor, entry: tuple[MPI.Datatype, int], pool: HostPool, gpu_aware: bool, load: bool
) -> Staged:
    (datatype, itemsize), count = entry, tensor.numel()
    if gpu_aware:
        # MPI knows nothing of streams: what fills the buffer must be complete before the call.
        synchronize(tensor)
        return Staged(MPI.buffer.fromaddress(tensor.data_ptr(), count * itemsize), count, datatype, itemsize)
    copy = HostCopy(pool, tensor)
    if load:
        copy.load()
    return Staged(copy.memory(), count, datatype, itemsize, copy)


def synchronize(tensor: torch.Tensor) -> None:
    """Wait until the current stream of a CUDA tensor is done. Nothing to do elsewhere: copies are blocking there."""
    if tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()


def as_tensor(buffer: Any) -> Any:
    """A CuPy array as the tensor of torch that has the same memory; everything else as it is.

    Torch's current stream then waits for what fills the array on CuPy's.

    Raises:
        UsageError: torch cannot take it.
    """
    if not is_cupy(buffer):
        return buffer
    try:
        return from_dlpack(buffer)
    except (BufferError, RuntimeError, TypeError) as error:
        raise UsageError(
            f"a CuPy array of type {buffer.dtype} could not be handed to torch, which copies it for MPI "
            f"({type(error).__name__}: {error}); types are {_KNOWN}, and torch must be a build for CUDA."
        ) from error


def is_cupy(buffer: Any) -> bool:
    """Whether ``buffer`` is a CuPy array, without importing CuPy."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(buffer, cupy.ndarray)


def empty_like(buffer: Any, count: int) -> Any:
    """An uninitialised 1-D buffer of ``count`` elements of the same kind, type and device."""
    if isinstance(buffer, torch.Tensor):
        return torch.empty(count, dtype=buffer.dtype, device=buffer.device)
    if isinstance(buffer, np.ndarray):
        return np.empty(count, dtype=buffer.dtype)
    with buffer.device:
        return sys.modules["cupy"].empty(count, dtype=buffer.dtype)


def _refusal_torch(tensor: torch.Tensor) -> str:
    if tensor.dtype not in _TORCH_TYPES:
        return _refusal_type(tensor.dtype)
    if tensor.layout is not torch.strided:
        return f"a tensor with layout {tensor.layout} cannot be communicated, only dense ones; call .to_dense() first."
    return (
        f"a tensor of shape {tuple(tensor.shape)} with strides {tensor.stride()} is not row-major contiguous, and MPI "
        "would send the wrong numbers; pass tensor.contiguous() and copy the result back."
    )


def _refusal_array(array: Any) -> str:
    if np.dtype(array.dtype) not in _NUMPY_TYPES:
        return _refusal_type(array.dtype)
    if not array.flags.c_contiguous:
        order = "column-major (Fortran order)" if array.flags.f_contiguous else "strided"
        return (
            f"an array of shape {tuple(array.shape)} with strides {tuple(array.strides)} is {order}, but buffers for "
            "communication must be row-major contiguous; pass numpy.ascontiguousarray(array) and copy the result back."
        )
    return "a read-only array cannot take the result of a collective; pass array.copy()."


def _refusal_type(dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.")
    hint = "convert it with .float() first" if name in ("float16", "bfloat16") else "convert it first"
    return (
        f"a buffer of type {name} cannot be communicated, only {_KNOWN}: MPI has no exact reduction for other types, "
        f"and half precision would lose digits in every sum; {hint}."
    )
