"""Collectives on torch, NumPy and CuPy buffers over one MPI communicator.

All functions marked *Collective* must be called by all ranks of the communicator, in the same order, with buffers of
the same count and type. Arguments are checked before the first message.
"""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Callable, Sequence
from itertools import accumulate
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from hpcopt.comm.chunks import in_chunks, is_large
from hpcopt.comm.ledger import Ledger
from hpcopt.comm.mpi_library import load_mpi
from hpcopt.comm.request import Request
from hpcopt.comm.staging import HostPool, Staged, empty_like, stage
from hpcopt.comm.together import Together
from hpcopt.errors import UsageError, nearest

if TYPE_CHECKING:
    from mpi4py import MPI
else:
    MPI = load_mpi()

Buffer = TypeVar("Buffer")

CHUNK = 2**30
"""Elements a call of MPI at most: counts are 32-bit integers in MPI before version 4."""

_OPS: dict[str, MPI.Op] = {"sum": MPI.SUM, "max": MPI.MAX, "min": MPI.MIN}
_IN_PLACE = MPI.IN_PLACE


class Communicator:
    """A group of ranks with collectives on numerical buffers.

    Attributes:
        mpi: the mpi4py communicator underneath.
        rank: number of this process in the group, from 0.
        size: number of processes in the group.
        host: name of this rank's machine.
        ledger: what was called, shared with communicators split from this one.
        gpu_aware: device memory is handed to MPI as it is.
        pipelined: large reductions and broadcasts go in chunks, so that copies between device and host happen beside
            the messages; False at first. It must be the same on all ranks, whatever their buffers.
        chunk: elements a call of MPI at most; larger buffers go in several calls.
        barriers: every call that blocks begins with a barrier, whose time the ledger keeps apart: that of waiting for
            the last rank to come. False at first; it must be the same on all ranks.
    """

    def __init__(
        self,
        comm: MPI.Comm | None = None,
        *,
        gpu_aware: bool = False,
        ledger: Ledger | None = None,
        chunk: int = CHUNK,
    ) -> None:
        """Wrap ``comm`` (default: all processes of the job). Local; the communicator stays the caller's to free.

        Raises:
            UsageError: ``comm`` is not an mpi4py communicator, or ``chunk`` is not positive.
        """
        if comm is None:
            comm = MPI.COMM_WORLD
        if not isinstance(comm, MPI.Comm):
            raise UsageError(f"Communicator needs an mpi4py communicator such as MPI.COMM_WORLD, got {comm!r}.")
        if chunk < 1:
            raise UsageError(f"chunk = {chunk} is too small: at least one element must go in a call.")
        self.mpi = comm
        self.rank: int = comm.rank
        self.size: int = comm.size
        self.host: str = MPI.Get_processor_name()
        self.gpu_aware, self.pipelined, self.barriers = gpu_aware, False, False
        self.ledger = Ledger() if ledger is None else ledger
        self.chunk = chunk
        self._pool = HostPool()
        self._owned = False

    def __repr__(self) -> str:
        """Rank, size and host."""
        return f"Communicator(rank={self.rank}, size={self.size}, host={self.host!r})"

    # Reductions and transfers of buffers

    def allreduce(self, buffer: Buffer, op: str = "sum", label: str = "allreduce") -> Buffer:
        """Reduce ``buffer`` over all ranks in place and return it. *Collective*.

        Args:
            buffer: torch, NumPy or CuPy buffer of any shape, row-major contiguous, the same count on every rank.
            op: "sum", "max" or "min". Only "sum" carries NaN reliably: what "max" makes of NaN is up to MPI.
            label: the ledger's account.

        Raises:
            UsageError: the buffer or the op cannot be used; nothing was sent.
        """
        start = self.start_call()
        mpi_op = _OPS.get(op) or _unknown_op(op)
        if self.pipelined and is_large(buffer):
            return self._in_chunks(buffer, label, start, lambda part: self.mpi.Iallreduce(_IN_PLACE, part, mpi_op))
        staged = stage(buffer, self._pool, self.gpu_aware)
        count, chunk = staged.count, self.chunk
        if count <= chunk:
            self.mpi.Allreduce(_IN_PLACE, (staged.memory, count, staged.datatype), mpi_op)
        else:
            for part in _chunks(staged, 0, count, chunk):
                self.mpi.Allreduce(_IN_PLACE, part, mpi_op)
        if staged.copy is not None:
            staged.finish()
        self.ledger.add(label, staged.nbytes, perf_counter() - start)
        return buffer

    def iallreduce(self, buffer: Buffer, op: str = "sum", label: str = "iallreduce") -> Request:
        """Start to reduce ``buffer`` over all ranks in place. *Collective*; arguments as for ``allreduce``.

        Several may be in flight; all ranks must start them in the same order.
        """
        start = perf_counter()
        mpi_op = _OPS.get(op) or _unknown_op(op)
        staged = stage(buffer, self._pool, self.gpu_aware)
        requests = [
            self.mpi.Iallreduce(_IN_PLACE, part, mpi_op) for part in _chunks(staged, 0, staged.count, self.chunk)
        ]
        self.ledger.add(label, staged.nbytes, perf_counter() - start)
        return Request(buffer, staged, requests, self.ledger, label)

    def ibcast(self, buffer: Buffer, root: int = 0, label: str = "ibcast") -> Request:
        """Start to copy ``buffer`` of rank ``root`` over the buffer of every rank. *Collective*.

        Several may be in flight, reductions among them; all ranks must start them in the same order.

        Raises:
            UsageError: the buffer or the root cannot be used; nothing was sent.
        """
        start = perf_counter()
        self._check_root(root)
        staged = stage(buffer, self._pool, self.gpu_aware, load=self.rank == root)
        requests = [self.mpi.Ibcast(part, root) for part in _chunks(staged, 0, staged.count, self.chunk)]
        self.ledger.add(label, staged.nbytes, perf_counter() - start)
        return Request(buffer, staged, requests, self.ledger, label)

    def bcast(self, buffer: Buffer, root: int = 0, label: str = "bcast") -> Buffer:
        """Copy ``buffer`` of rank ``root`` over the buffer of every rank, in place. *Collective*.

        Raises:
            UsageError: the buffer or the root cannot be used; nothing was sent.
        """
        start = self.start_call()
        self._check_root(root)
        is_root = self.rank == root
        if self.pipelined and is_large(buffer):
            given = {"load": is_root, "store": not is_root}
            return self._in_chunks(buffer, label, start, lambda part: self.mpi.Ibcast(part, root), **given)
        staged = stage(buffer, self._pool, self.gpu_aware, load=is_root, write=not is_root)
        for part in _chunks(staged, 0, staged.count, self.chunk):
            self.mpi.Bcast(part, root)
        staged.finish(store=not is_root)
        self.ledger.add(label, staged.nbytes, perf_counter() - start)
        return buffer

    def reduce_scatter(self, buffer: Buffer, counts: Sequence[int], label: str = "reduce_scatter") -> Buffer:
        """Sum ``buffer`` over all ranks and return this rank's block of it. *Collective*.

        Args:
            buffer: sum(counts) elements, the same on every rank; it is left as it is.
            counts: elements each rank gets, in the order of the ranks; 0 is allowed. The same on every rank.
            label: the ledger's account.

        Returns:
            A new 1-D buffer of ``counts[rank]`` elements, of the same kind and on the same device.

        Raises:
            UsageError: the buffer does not have sum(counts) elements, or cannot be used; nothing was sent.
        """
        start = self.start_call()
        counts = self._check_counts(counts)
        staged = stage(buffer, self._pool, self.gpu_aware, write=False)
        _check_length("reduce_scatter", staged, sum(counts), "sum(counts)")
        result = empty_like(buffer, counts[self.rank])
        target = stage(result, self._pool, self.gpu_aware, load=False)
        if staged.count <= self.chunk:
            self.mpi.Reduce_scatter(
                (staged.memory, staged.count, staged.datatype),
                (target.memory, target.count, target.datatype),
                list(counts),
            )
        else:
            self._reduce_blocks(staged, target, counts)
        staged.finish(store=False)
        target.finish()
        self.ledger.add(label, staged.nbytes, perf_counter() - start)
        return result  # type: ignore[no-any-return]

    def allgatherv(self, part: Buffer, counts: Sequence[int], label: str = "allgatherv") -> Buffer:
        """Put the parts of all ranks one after the other, on every rank. *Collective*.

        Args:
            part: this rank's ``counts[rank]`` elements, row-major contiguous.
            counts: elements each rank gives, in the order of the ranks; 0 is allowed. The same on every rank.
            label: the ledger's account.

        Returns:
            A new 1-D buffer of sum(counts) elements, of the same kind and on the same device.

        Raises:
            UsageError: the part does not have ``counts[rank]`` elements, or cannot be used; nothing was sent.
        """
        start = self.start_call()
        counts = self._check_counts(counts)
        staged = stage(part, self._pool, self.gpu_aware, write=False)
        _check_length("allgatherv", staged, counts[self.rank], f"counts[{self.rank}]")
        result = empty_like(part, sum(counts))
        target = stage(result, self._pool, self.gpu_aware, load=False)
        if target.count <= self.chunk:
            self.mpi.Allgatherv(
                (staged.memory, staged.count, staged.datatype),
                (target.memory, list(counts), _offsets(counts), target.datatype),
            )
        else:
            self._gather_blocks(staged, target, counts)
        staged.finish(store=False)
        target.finish()
        self.ledger.add(label, target.nbytes, perf_counter() - start)
        return result  # type: ignore[no-any-return]

    def _in_chunks(
        self, buffer: Buffer, label: str, start: float, call: Callable[..., MPI.Request], **which: bool
    ) -> Buffer:
        """One call for each chunk, with the copies between device and host beside them. *Collective*."""
        nbytes = in_chunks(buffer, self._pool, call, **which)
        self.ledger.add(label, nbytes, perf_counter() - start)
        return buffer

    def _reduce_blocks(self, staged: Staged, target: Staged, counts: Sequence[int]) -> None:
        """Reduce_scatter in pieces: each block is reduced to its owner. *Collective*."""
        for owner, (offset, count) in enumerate(zip(_offsets(counts), counts, strict=True)):
            pieces = list(_chunks(target, 0, count, self.chunk)) if owner == self.rank else None
            for i, piece in enumerate(_chunks(staged, offset, count, self.chunk)):
                self.mpi.Reduce(piece, pieces[i] if pieces else None, MPI.SUM, owner)

    def _gather_blocks(self, staged: Staged, target: Staged, counts: Sequence[int]) -> None:
        """Allgatherv in pieces: each rank broadcasts its block. *Collective*."""
        mine = _offsets(counts)[self.rank] * target.itemsize
        target.memory[mine : mine + staged.nbytes] = staged.memory
        for owner, (offset, count) in enumerate(zip(_offsets(counts), counts, strict=True)):
            for piece in _chunks(target, offset, count, self.chunk):
                self.mpi.Bcast(piece, owner)

    # Scalars and objects

    def reduce_scalars(self, values: Sequence[float], op: str = "sum", label: str = "scalars") -> list[float]:
        """Reduce several numbers as float64 in one call. *Collective*; as many values on every rank."""
        start = self.start_call()
        mpi_op = _OPS.get(op) or _unknown_op(op)
        pack = array("d", values)
        self.mpi.Allreduce(_IN_PLACE, (pack, len(pack), MPI.DOUBLE), mpi_op)
        self.ledger.add(label, 8 * len(pack), perf_counter() - start)
        return pack.tolist()

    def broadcast_scalars(self, values: Sequence[float], root: int = 0, label: str = "scalars") -> list[float]:
        """The numbers of rank ``root`` on every rank, as float64. *Collective*; as many values on every rank."""
        start = self.start_call()
        self._check_root(root)
        pack = array("d", values)
        self.mpi.Bcast((pack, len(pack), MPI.DOUBLE), root)
        self.ledger.add(label, 8 * len(pack), perf_counter() - start)
        return pack.tolist()

    def broadcast_object(self, obj: Any = None, root: int = 0, label: str = "objects") -> Any:
        """The picklable object of rank ``root`` on every rank; the others' is ignored. *Collective*."""
        self._check_root(root)
        return self._objects(lambda pack: [self.mpi.bcast(pack, root)], obj, label, self.rank == root)[0]

    def gather_objects(self, obj: Any, root: int = 0, label: str = "objects") -> list[Any] | None:
        """The picklable objects of all ranks, by rank, on rank ``root``; None elsewhere. *Collective*."""
        self._check_root(root)
        found = self._objects(lambda pack: self.mpi.gather(pack, root) or [], obj, label)
        return found if self.rank == root else None

    def allgather_objects(self, obj: Any, label: str = "objects") -> list[Any]:
        """The picklable objects of all ranks, by rank, on every rank. *Collective*."""
        return self._objects(self.mpi.allgather, obj, label)

    def barrier(self, label: str = "barrier") -> None:
        """Wait for all ranks. *Collective*."""
        start = self.start_call()
        self.mpi.Barrier()
        self.ledger.add(label, 0, perf_counter() - start)

    def _objects(self, move: Callable[[bytes], list[bytes]], obj: Any, label: str, send: bool = True) -> list[Any]:
        start = self.start_call()
        pack = pickle.dumps(obj, protocol=5) if send else b""
        packs = move(pack)
        self.ledger.add(label, len(pack) if send else sum(map(len, packs)), perf_counter() - start)
        return [pickle.loads(found) for found in packs]

    def start_call(self) -> float:
        """The time at which a call that blocks begins; with ``barriers``, wait for all ranks. *Collective*."""
        start = perf_counter()
        if self.barriers:
            self.mpi.Barrier()
            self.ledger.seconds_for_others += perf_counter() - start
        return start

    # Groups and failures

    def split(self, color: int, key: int = 0) -> Communicator:
        """The communicator of all ranks with the same ``color`` (>= 0), ordered by ``key``, then rank. *Collective*.

        It shares this one's ledger. ``free`` it when done.
        """
        if color < 0:
            raise UsageError(f"color = {color} is negative: every rank must belong to a group, numbered from 0.")
        return self._derived(self.mpi.Split(color, key))

    def split_shared(self) -> Communicator:
        """The communicator of the ranks that share this rank's host, in their order here. *Collective*."""
        return self._derived(self.mpi.Split_type(MPI.COMM_TYPE_SHARED, self.rank))

    def _derived(self, comm: MPI.Comm) -> Communicator:
        child = Communicator(comm, gpu_aware=self.gpu_aware, ledger=self.ledger, chunk=self.chunk)
        child._pool, child.pipelined, child.barriers = self._pool, self.pipelined, self.barriers
        child._owned = True
        return child

    def free(self) -> None:
        """Give back a communicator made by ``split``; does nothing to one that was passed in. *Collective*."""
        if self._owned and not MPI.Is_finalized():
            self._owned = False
            self.mpi.Free()

    def together(self, what: str) -> Together:
        """A ``with`` block that fails on all ranks or on none. *Collective* at its end.

        Inside the block a rank works alone: no collectives of this communicator. An ``HpcoptError`` of any rank is
        raised on all ranks, with the rank named in front unless all failed alike; any other exception becomes a
        ``RuntimeError`` on all ranks that carries the trace.

        Args:
            what: what the block does, for the message: "reading the training set".
        """
        return Together(self, what)

    # Checks

    def _check_root(self, root: int) -> None:
        if not 0 <= root < self.size:
            raise UsageError(f"root = {root} is not a rank: this communicator has ranks 0 to {self.size - 1}.")

    def _check_counts(self, counts: Sequence[int]) -> list[int]:
        counts = [int(count) for count in counts]
        if len(counts) != self.size or min(counts) < 0:
            raise UsageError(f"counts = {counts} must hold one number >= 0 for each of the {self.size} ranks.")
        return counts


def _chunks(staged: Staged, offset: int, count: int, limit: int) -> list[tuple[MPI.buffer, int, MPI.Datatype]]:
    """The elements offset ... offset + count - 1 as message specifications of at most ``limit`` elements."""
    memory, size, datatype = staged.memory, staged.itemsize, staged.datatype
    if offset == 0 and count == staged.count <= limit:
        return [(memory, count, datatype)]
    starts = range(offset, offset + count, limit)
    lengths = [min(limit, offset + count - start) for start in starts]
    return [(memory[s * size : (s + n) * size], n, datatype) for s, n in zip(starts, lengths, strict=True)]


def _offsets(counts: Sequence[int]) -> list[int]:
    return [0, *accumulate(counts)][:-1]


def _check_length(call: str, staged: Staged, expected: int, name: str) -> None:
    if staged.count != expected:
        staged.finish(store=False)
        raise UsageError(f"{call} was given a buffer of {staged.count} elements, but {name} = {expected}.")


def _unknown_op(op: str) -> MPI.Op:
    raise UsageError(f"op = {op!r} is unknown{nearest(str(op), _OPS)} It is one of {', '.join(_OPS)}.")
