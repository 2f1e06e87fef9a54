"""Large tensors of a device through two small host buffers: copies and messages of different chunks at the same time.

While MPI reduces one chunk in one pinned buffer, the device copies the next one into the other, on a stream of its own.
Every rank makes the same calls, also one whose tensor lies in host memory, where the chunks are used in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from hpcopt.comm.mpi_library import load_mpi
from hpcopt.comm.staging import HostPool, Staged, stage, torch_type

if TYPE_CHECKING:
    from mpi4py import MPI
else:
    MPI = load_mpi()

CHUNK_BYTES = 4 << 20
"""Of one message: long enough for the full rate of the bus, short enough that little is left alone at either end."""

_streams: dict[torch.device, torch.cuda.Stream] = {}


class HostChunks:
    """A buffer that MPI reads and writes where it is: in host memory, or its copy there."""

    def __init__(self, staged: Staged, size: int) -> None:
        """Chunks of ``size`` elements."""
        self._staged, self._size = staged, size

    def fetch(self, number: int) -> None:
        """Nothing: it is there."""

    def memory(self, number: int) -> tuple[MPI.buffer, int, MPI.Datatype]:
        """One chunk for MPI."""
        staged, first = self._staged, number * self._size
        count = min(self._size, staged.count - first)
        part = staged.memory[first * staged.itemsize : (first + count) * staged.itemsize]
        return part, count, staged.datatype

    def give(self, number: int) -> None:
        """Nothing: it is where it belongs."""

    def end(self, store: bool) -> None:
        """Give back what stands for the buffer, which is nothing where it is in host memory."""
        self._staged.finish(store)


class DeviceChunks:
    """A tensor on a device, and the two host buffers.

    Until the end nothing waits for the device but ``memory``, for the last copy to or from its buffer: copies follow
    each other on one stream, which starts after what fills the tensor.
    """

    def __init__(self, tensor: torch.Tensor, size: int, pool: HostPool) -> None:
        """Chunks of ``size`` elements of a contiguous tensor; takes the buffers."""
        self._parts, self._pool = tensor.detach().view(-1).split(size), pool
        self._cuda, self._key = tensor.is_cuda, "pinned" if tensor.is_cuda else "pageable"
        nbytes = size * tensor.element_size()
        self._raw = [pool.take_torch(self._key, nbytes) for _ in range(2)]
        self._slots = [raw[:nbytes].view(tensor.dtype) for raw in self._raw]
        self._events: list[torch.cuda.Event | None] = [None, None]
        self._datatype, self._itemsize = torch_type(tensor)
        self._stream: torch.cuda.Stream | None = None
        if self._cuda:
            if tensor.device not in _streams:
                _streams[tensor.device] = torch.cuda.Stream(tensor.device)
            self._stream = _streams[tensor.device]
            self._stream.wait_stream(torch.cuda.current_stream(tensor.device))
            tensor.record_stream(self._stream)

    def fetch(self, number: int) -> None:
        """Start to copy a chunk to its buffer."""
        part, slot = self._parts[number], number % 2
        with torch.cuda.stream(self._stream):
            self._slots[slot][: len(part)].copy_(part, non_blocking=self._cuda)
            if self._stream is not None:
                self._events[slot] = self._stream.record_event()

    def memory(self, number: int) -> tuple[MPI.buffer, int, MPI.Datatype]:
        """One chunk for MPI, once it is in its buffer and what was there before is on the device."""
        slot, count = number % 2, len(self._parts[number])
        event = self._events[slot]
        if event is not None:
            event.synchronize()
        address = self._slots[slot].data_ptr()
        return MPI.buffer.fromaddress(address, count * self._itemsize), count, self._datatype

    def give(self, number: int) -> None:
        """Start to copy a chunk from its buffer to the device."""
        part, slot = self._parts[number], number % 2
        with torch.cuda.stream(self._stream):
            part.copy_(self._slots[slot][: len(part)], non_blocking=self._cuda)
            if self._stream is not None:
                self._events[slot] = self._stream.record_event()

    def end(self, store: bool) -> None:
        """Wait for the last copies, and give the buffers back."""
        if self._stream is not None:
            self._stream.synchronize()
        for raw in self._raw:
            self._pool.give(self._key, raw)


def is_large(buffer: Any) -> bool:
    """Whether a buffer is longer than a chunk; False for what is none, which is refused elsewhere."""
    return int(getattr(buffer, "nbytes", 0)) > CHUNK_BYTES


def in_chunks(
    buffer: Any,
    pool: HostPool,
    start: Callable[[tuple[MPI.buffer, int, MPI.Datatype]], MPI.Request],
    *,
    load: bool = True,
    store: bool = True,
) -> int:
    """One collective for each chunk of a buffer, in place; its bytes. *Collective*.

    Args:
        buffer: torch tensor or array, of the same type and length on all ranks.
        pool: where host buffers come from.
        start: starts the call that does not block.
        load: MPI reads the buffer.
        store: MPI writes to it.

    Raises:
        UsageError: the buffer cannot be used; nothing was sent.
    """
    chunks: HostChunks | DeviceChunks
    if isinstance(buffer, torch.Tensor) and not buffer.is_cpu:
        _, itemsize = torch_type(buffer)
        elements = buffer.numel()
        chunks = DeviceChunks(buffer, CHUNK_BYTES // itemsize, pool)
    else:
        staged = stage(buffer, pool, write=store)
        itemsize, elements = staged.itemsize, staged.count
        chunks = HostChunks(staged, CHUNK_BYTES // itemsize)
    count = -(-elements // (CHUNK_BYTES // itemsize))
    if load and count:
        chunks.fetch(0)
    for number in range(count):
        request = start(chunks.memory(number))
        if load and number + 1 < count:
            chunks.fetch(number + 1)
        request.Wait()
        if store:
            chunks.give(number)
    chunks.end(store)
    return elements * itemsize
