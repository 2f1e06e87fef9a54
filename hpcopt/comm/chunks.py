"""Large tensors of a device through small host buffers: copies and messages of different chunks at the same time.

While MPI has one chunk in one pinned buffer, the device copies the next one into the other, on a stream of its own.
Every rank makes the same calls, also one whose tensor lies in host memory, where the chunks are used in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch

from hpcopt.comm.mpi_library import load_mpi
from hpcopt.comm.staging import HostPool, Staged, as_tensor, stage, torch_type

if TYPE_CHECKING:
    from mpi4py import MPI
else:
    MPI = load_mpi()

CHUNK_BYTES = 4 << 20
"""Of one message: long enough for the full rate of the bus, short enough that little is left alone at either end."""

Cuts: TypeAlias = Sequence[Sequence[slice]]
"""For every chunk, the parts of a buffer that it has, one after the other."""

Message: TypeAlias = "tuple[MPI.buffer, int, MPI.Datatype]"

_streams: dict[torch.device, torch.cuda.Stream] = {}


class Chunks(Protocol):
    """A buffer as one message after the other; all but the first two return before copies are complete."""

    def memory(self, number: int) -> Message:
        """One chunk for MPI, once it is in host memory and what was there before is where it belongs."""
        ...

    def end(self, store: bool) -> None:
        """Wait for the last copies, and give back what stood for the buffer; with ``store`` it has the results."""
        ...

    def fetch(self, number: int) -> None:
        """Start to copy a chunk to host memory."""
        ...

    def give(self, number: int) -> None:
        """Start to copy a chunk from host memory to the buffer."""
        ...


class HostChunks:
    """``Chunks`` of a buffer that MPI reads and writes where it is: in host memory, or its whole copy there.

    Args:
        staged: the buffer.
        cuts: one part a chunk.
    """

    def __init__(self, staged: Staged, cuts: Cuts = ()) -> None:
        self._staged, self._cuts = staged, cuts

    def memory(self, number: int) -> Message:
        """Part of the buffer itself."""
        staged, (part,) = self._staged, self._cuts[number]
        memory = staged.memory[part.start * staged.itemsize : part.stop * staged.itemsize]
        return memory, part.stop - part.start, staged.datatype

    def end(self, store: bool) -> None:
        """Nothing is given back for a buffer in host memory."""
        self._staged.finish(store)

    def fetch(self, number: int) -> None:
        """Nothing: it is there."""

    def give(self, number: int) -> None:
        """Nothing: it is where it belongs."""


class DeviceChunks:
    """``Chunks`` of a tensor on a device, or of one whose chunks have several parts, in host buffers.

    Until the end nothing waits for the device but ``memory``, for the last copy to or from its buffer: copies follow
    each other on one stream, which starts after what fills the tensor.

    Args:
        tensor: contiguous.
        cuts: the parts of each chunk.
        pool: where host memory comes from.
        slots: host buffers; a chunk may be in one while no other with the same remainder by ``slots`` is.
    """

    def __init__(self, tensor: torch.Tensor, cuts: Cuts, pool: HostPool, slots: int = 2) -> None:
        self._datatype, self._itemsize = torch_type(tensor)
        flat, self._pool, self._count = tensor.detach().view(-1), pool, slots
        self._parts = [[flat[part] for part in parts] for parts in cuts]
        self._lengths = [sum(map(len, parts)) for parts in self._parts]
        self._cuda, self._key = tensor.is_cuda, "pinned" if tensor.is_cuda else "pageable"
        size = max(self._lengths, default=0)
        nbytes = slots * size * self._itemsize
        self._raw = pool.take_torch(self._key, nbytes)
        self._slots = self._raw[:nbytes].view(tensor.dtype).view(slots, size)
        self._events: list[torch.cuda.Event | None] = [None] * slots
        self._stream: torch.cuda.Stream | None = None
        if self._cuda:
            if tensor.device not in _streams:
                _streams[tensor.device] = torch.cuda.Stream(tensor.device)
            self._stream = _streams[tensor.device]
            self._stream.wait_stream(torch.cuda.current_stream(tensor.device))
            tensor.record_stream(self._stream)

    def memory(self, number: int) -> Message:
        """The host buffer of a chunk, after its last copy."""
        slot, count = number % self._count, self._lengths[number]
        event = self._events[slot]
        if event is not None:
            event.synchronize()
        address = self._slots[slot].data_ptr()
        return MPI.buffer.fromaddress(address, count * self._itemsize), count, self._datatype

    def end(self, store: bool) -> None:
        """Wait for the last copies, and give the buffers back."""
        if self._stream is not None:
            self._stream.synchronize()
        self._pool.give(self._key, self._raw)

    def fetch(self, number: int) -> None:
        """Start to copy a chunk to its buffer."""
        self._copy(number, lambda part, host: host.copy_(part, non_blocking=self._cuda))

    def give(self, number: int) -> None:
        """Start to copy a chunk from its buffer to the device."""
        self._copy(number, lambda part, host: part.copy_(host, non_blocking=self._cuda))

    def _copy(self, number: int, copy: Callable[[torch.Tensor, torch.Tensor], object]) -> None:
        slot, parts = number % self._count, self._parts[number]
        hosts = self._slots[slot][: self._lengths[number]].split([len(part) for part in parts])
        with torch.cuda.stream(self._stream):
            for part, host in zip(parts, hosts, strict=True):
                copy(part, host)
            if self._stream is not None:
                self._events[slot] = self._stream.record_event()


def is_large(buffer: Any) -> bool:
    """Whether a buffer is longer than a chunk; False for what is none, which is refused elsewhere."""
    return int(getattr(buffer, "nbytes", 0)) > CHUNK_BYTES


def cut(buffer: Any) -> Cuts:
    """A buffer in chunks of as many bytes, but for the last one."""
    size, count = CHUNK_BYTES // buffer.itemsize, buffer.nbytes // buffer.itemsize
    return [[slice(first, min(first + size, count))] for first in range(0, count, size)]


def cut_blocks(counts: Sequence[int], itemsize: int) -> Cuts:
    """Blocks of so many elements, one behind the other, in chunks that have a part of each block, maybe of none."""
    each = max(CHUNK_BYTES // (itemsize * len(counts)), 1)
    firsts = [0, *accumulate(counts)]
    return [
        [
            slice(first + min(start, count), first + min(start + each, count))
            for first, count in zip(firsts, counts, strict=False)
        ]
        for start in range(0, max(counts), each)
    ]


def chunks_of(buffer: Any, cuts: Cuts, pool: HostPool, *, write: bool, slots: int = 2) -> Chunks:
    """The chunks of a buffer. Local.

    Args:
        buffer: torch tensor or array.
        cuts: their parts.
        pool: where host buffers come from.
        write: MPI writes to it.
        slots: host buffers, where they are needed.

    Raises:
        UsageError: the buffer cannot be used.
    """
    buffer = as_tensor(buffer)
    if isinstance(buffer, torch.Tensor) and not buffer.is_cpu:
        return DeviceChunks(buffer, cuts, pool, slots)
    staged = stage(buffer, pool, write=write)
    if all(len(parts) == 1 for parts in cuts):
        return HostChunks(staged, cuts)
    if not isinstance(buffer, torch.Tensor):
        # Torch warns of an array that it must not write to, which it does not.
        buffer = torch.from_numpy(buffer if buffer.flags.writeable else buffer.copy())
    return DeviceChunks(buffer, cuts, pool, slots)


def in_chunks(
    count: int, start: Callable[[int], MPI.Request], source: Chunks | None = None, target: Chunks | None = None
) -> None:
    """One collective for each of ``count`` chunks, with the copies of the others beside it. *Collective*.

    Args:
        count: chunks.
        start: starts the call for one of them.
        source: what MPI reads; None where it reads nothing.
        target: what MPI writes, which may be the same; None where it writes nothing.
    """
    if source is not None and count:
        source.fetch(0)
    for number in range(count):
        request = start(number)
        if source is not None and number + 1 < count:
            source.fetch(number + 1)
        request.Wait()
        if target is not None:
            target.give(number)
    if source is not None and source is not target:
        source.end(store=False)
    if target is not None:
        target.end(store=True)
