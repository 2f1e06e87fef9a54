"""Collectives in which every rank has a block of a buffer: the sum of what all have of it, and all blocks everywhere.

Both go in one call of MPI; in several where that takes fewer elements; or in chunks, with the copies between device and
host beside the messages, where every chunk has a part of each rank's block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from hpcopt.comm import chunks
from hpcopt.comm.chunks import chunks_of, cut_blocks, in_chunks
from hpcopt.comm.mpi_library import load_mpi
from hpcopt.comm.staging import Staged, empty_like, stage
from hpcopt.errors import UsageError
from hpcopt.layout.block import Block

if TYPE_CHECKING:
    from mpi4py import MPI

    from hpcopt.comm.communicator import Communicator
else:
    MPI = load_mpi()


def reduce_scatter(comm: Communicator, buffer: Any, counts: Sequence[int]) -> Any:
    """As ``Communicator.reduce_scatter``, whose arguments these are. *Collective*."""
    counts = _checked(comm, counts)
    if comm.pipelined and chunks.is_large(buffer):
        return _reduce_in_chunks(comm, buffer, counts)
    staged = stage(buffer, comm.pool, comm.gpu_aware, write=False)
    _check_length("reduce_scatter", staged, sum(counts), "sum(counts)")
    result = empty_like(buffer, counts[comm.rank])
    target = stage(result, comm.pool, comm.gpu_aware, load=False)
    if staged.count <= comm.chunk:
        comm.mpi.Reduce_scatter(
            (staged.memory, staged.count, staged.datatype),
            (target.memory, target.count, target.datatype),
            list(counts),
        )
    else:
        _reduce_blocks(comm, staged, target, counts)
    staged.finish(store=False)
    target.finish()
    return result


def allgatherv(comm: Communicator, part: Any, counts: Sequence[int]) -> Any:
    """As ``Communicator.allgatherv``, whose arguments these are. *Collective*."""
    counts, itemsize = _checked(comm, counts), getattr(part, "itemsize", 0)
    if comm.pipelined and sum(counts) * itemsize > chunks.CHUNK_BYTES:
        return _gather_in_chunks(comm, part, counts)
    staged = stage(part, comm.pool, comm.gpu_aware, write=False)
    _check_length("allgatherv", staged, counts[comm.rank], f"counts[{comm.rank}]")
    result, in_one = empty_like(part, sum(counts)), sum(counts) <= comm.chunk
    if not in_one:
        # What each rank then broadcasts. Not by way of MPI's memory, which may be that of a device.
        with torch.no_grad():
            result[Block(offsets(counts)[comm.rank], staged.count).slice] = part.reshape(-1)
    target = stage(result, comm.pool, comm.gpu_aware, load=not in_one)
    if in_one:
        comm.mpi.Allgatherv(
            (staged.memory, staged.count, staged.datatype),
            (target.memory, list(counts), offsets(counts), target.datatype),
        )
    else:
        _gather_blocks(comm, target, counts)
    staged.finish(store=False)
    target.finish()
    return result


def gathering(
    comm: Communicator, part: Any, buffer: Any, counts: Sequence[int]
) -> tuple[Staged, Callable[[chunks.Message], MPI.Request]]:
    """Of ``Communicator.iallgatherv``: this rank's part, ready for MPI, and what makes the call for a message.

    The messages follow each other over the whole buffer, and each has as much of every block as lies in it.
    """
    counts = _checked(comm, counts)
    source = stage(part, comm.pool, comm.gpu_aware, write=False)
    _check_length("iallgatherv", source, counts[comm.rank], f"counts[{comm.rank}]")
    _check_elements("iallgatherv", buffer, sum(counts), "sum(counts)")
    blocks, begun = [Block(*each) for each in zip(offsets(counts), counts, strict=True)], 0

    def start(message: chunks.Message) -> MPI.Request:
        """The next elements of the buffer."""
        nonlocal begun
        memory, count, datatype = message
        inside = [block.within(begun, begun + count) for block in blocks]
        begun += count
        lengths, own, size = [each.count for each in inside], inside[comm.rank], source.itemsize
        first = own.start - blocks[comm.rank].start
        mine = source.memory[first * size : (first + own.count) * size], own.count, source.datatype
        return comm.mpi.Iallgatherv(mine, (memory, lengths, offsets(lengths), datatype))

    return source, start


def _reduce_in_chunks(comm: Communicator, buffer: Any, counts: Sequence[int]) -> Any:
    _check_elements("reduce_scatter", buffer, sum(counts), "sum(counts)")
    cuts = cut_blocks(counts, buffer.itemsize)
    source = chunks_of(buffer, cuts, comm.pool, write=False)
    result = empty_like(buffer, counts[comm.rank])
    target = chunks_of(result, _own(cuts, counts, comm.rank), comm.pool, write=True)

    def start(number: int) -> MPI.Request:
        """The sums of one part of each block."""
        lengths = [part.stop - part.start for part in cuts[number]]
        return comm.mpi.Ireduce_scatter(source.memory(number), target.memory(number), lengths)

    in_chunks(len(cuts), start, source, target)
    return result


def _gather_in_chunks(comm: Communicator, part: Any, counts: Sequence[int]) -> Any:
    _check_elements("allgatherv", part, counts[comm.rank], f"counts[{comm.rank}]")
    cuts = cut_blocks(counts, part.itemsize)
    source = chunks_of(part, _own(cuts, counts, comm.rank), comm.pool, write=False)
    result = empty_like(part, sum(counts))
    target = chunks_of(result, cuts, comm.pool, write=True)

    def start(number: int) -> MPI.Request:
        """One part of each block."""
        lengths = [part.stop - part.start for part in cuts[number]]
        memory, _, datatype = target.memory(number)
        return comm.mpi.Iallgatherv(source.memory(number), (memory, lengths, offsets(lengths), datatype))

    in_chunks(len(cuts), start, source, target)
    return result


def _own(cuts: chunks.Cuts, counts: Sequence[int], rank: int) -> chunks.Cuts:
    """A rank's parts, in its block alone."""
    first = offsets(counts)[rank]
    return [[slice(parts[rank].start - first, parts[rank].stop - first)] for parts in cuts]


def _reduce_blocks(comm: Communicator, staged: Staged, target: Staged, counts: Sequence[int]) -> None:
    """Reduce_scatter in pieces: each block is reduced to its owner. *Collective*."""
    for owner, (offset, count) in enumerate(zip(offsets(counts), counts, strict=True)):
        pieces = list(pieces_of(target, 0, count, comm.chunk)) if owner == comm.rank else None
        for i, piece in enumerate(pieces_of(staged, offset, count, comm.chunk)):
            comm.mpi.Reduce(piece, pieces[i] if pieces else None, MPI.SUM, owner)


def _gather_blocks(comm: Communicator, target: Staged, counts: Sequence[int]) -> None:
    """Allgatherv in pieces: each rank broadcasts its block, which is in its place. *Collective*."""
    for owner, (offset, count) in enumerate(zip(offsets(counts), counts, strict=True)):
        for piece in pieces_of(target, offset, count, comm.chunk):
            comm.mpi.Bcast(piece, owner)


def pieces_of(staged: Staged, offset: int, count: int, limit: int) -> list[chunks.Message]:
    """The elements offset ... offset + count - 1 as message specifications of at most ``limit`` elements."""
    memory, size, datatype = staged.memory, staged.itemsize, staged.datatype
    if offset == 0 and count == staged.count <= limit:
        return [(memory, count, datatype)]
    starts = range(offset, offset + count, limit)
    lengths = [min(limit, offset + count - start) for start in starts]
    return [(memory[s * size : (s + n) * size], n, datatype) for s, n in zip(starts, lengths, strict=True)]


def offsets(counts: Sequence[int]) -> list[int]:
    """Where blocks of so many elements begin."""
    return [0, *accumulate(counts)][:-1]


def _checked(comm: Communicator, counts: Sequence[int]) -> list[int]:
    counts = [int(count) for count in counts]
    if len(counts) != comm.size or min(counts) < 0:
        raise UsageError(f"counts = {counts} must hold one number >= 0 for each of the {comm.size} ranks.")
    return counts


def _check_length(call: str, staged: Staged, expected: int, name: str) -> None:
    if staged.count != expected:
        staged.finish(store=False)
        raise UsageError(_wrong_length(call, staged.count, expected, name))


def _check_elements(call: str, buffer: Any, expected: int, name: str) -> None:
    """The same before there is a host buffer."""
    if buffer.nbytes != expected * buffer.itemsize:
        raise UsageError(_wrong_length(call, buffer.nbytes // buffer.itemsize, expected, name))


def _wrong_length(call: str, found: int, expected: int, name: str) -> str:
    return f"{call} was given a buffer of {found} elements, but {name} = {expected}."
