"""Collectives on torch, NumPy and CuPy buffers over one MPI communicator.

All functions marked *Collective* must be called by all ranks of the communicator, in the same order, with buffers of
the same count and type. Arguments are checked before the first message.
"""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from hpcopt.comm import blocks
from hpcopt.comm.blocks import pieces_of
from hpcopt.comm.chunks import Message, chunks_of, cut, in_chunks, is_large
from hpcopt.comm.ledger import Ledger
from hpcopt.comm.mpi_library import load_mpi
from hpcopt.comm.nccl import Nccl
from hpcopt.comm.request import Request, started
from hpcopt.comm.staging import HostPool, stage
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
        pipelined: large buffers go in chunks, so that copies between device and host happen beside the messages; False
            at first. It must be the same on all ranks, whatever their buffers.
        chunk: elements a call of MPI at most; larger buffers go in several calls.
        barriers: every call that blocks begins with a barrier, whose time the ledger keeps apart: that of waiting for
            the last rank to come. False at first; it must be the same on all ranks.
        nccl: sums large tensors from device to device; None, as at first, on all ranks or on none.
        pool: host buffers that stand for memory of a device, kept between calls.
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
        self.pool = HostPool()
        self.nccl: Nccl | None = None
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
        start = self.start_call() if self.barriers else perf_counter()
        mpi_op = _OPS.get(op) or _unknown_op(op)
        if self.nccl is not None and self._by_nccl(buffer, op, label, start):
            return buffer
        if self.pipelined and is_large(buffer):
            return self._in_chunks(buffer, label, start, partial(self.mpi.Iallreduce, _IN_PLACE, op=mpi_op))
        staged = stage(buffer, self.pool, self.gpu_aware)
        count, chunk = staged.count, self.chunk
        if count <= chunk:
            self.mpi.Allreduce(_IN_PLACE, (staged.memory, count, staged.datatype), mpi_op)
        else:
            for part in pieces_of(staged, 0, count, chunk):
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
        if self.nccl is not None and self._by_nccl(buffer, op, label, start):
            return Request(buffer, None, [], self.ledger, label)
        call = partial(self.mpi.Iallreduce, _IN_PLACE, op=_OPS.get(op) or _unknown_op(op))
        return started(self, buffer, label, start, call)

    def ibcast(self, buffer: Buffer, root: int = 0, label: str = "ibcast") -> Request:
        """Start to copy ``buffer`` of rank ``root`` over the buffer of every rank. *Collective*.

        Several may be in flight, reductions among them; all ranks must start them in the same order.

        Raises:
            UsageError: the buffer or the root cannot be used; nothing was sent.
        """
        start = perf_counter()
        self._check_root(root)
        return started(self, buffer, label, start, partial(self.mpi.Ibcast, root=root), load=self.rank == root)

    def bcast(self, buffer: Buffer, root: int = 0, label: str = "bcast") -> Buffer:
        """Copy ``buffer`` of rank ``root`` over the buffer of every rank, in place. *Collective*.

        Raises:
            UsageError: the buffer or the root cannot be used; nothing was sent.
        """
        start = self.start_call()
        self._check_root(root)
        is_root = self.rank == root
        if self.pipelined and is_large(buffer):
            call = partial(self.mpi.Ibcast, root=root)
            return self._in_chunks(buffer, label, start, call, load=is_root, store=not is_root)
        staged = stage(buffer, self.pool, self.gpu_aware, load=is_root, write=not is_root)
        for part in pieces_of(staged, 0, staged.count, self.chunk):
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
        result = blocks.reduce_scatter(self, buffer, counts)
        self.ledger.add(label, buffer.nbytes, perf_counter() - start)  # type: ignore[attr-defined]
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
        result = blocks.allgatherv(self, part, counts)
        self.ledger.add(label, result.nbytes, perf_counter() - start)
        return result  # type: ignore[no-any-return]

    def iallgatherv(self, part: Buffer, buffer: Buffer, counts: Sequence[int], label: str = "iallgatherv") -> Request:
        """Start to put the parts of all ranks one after the other in ``buffer``. *Collective*.

        As ``allgatherv``; several may be in flight, which all ranks must start in the same order.

        Raises:
            UsageError: part or buffer do not have the elements that ``counts`` tells, or cannot be used; nothing was
                sent.
        """
        start = perf_counter()
        source, call = blocks.gathering(self, part, buffer, counts)
        return started(self, buffer, label, start, call, load=False, sent=(part, source))

    def _by_nccl(self, buffer: Any, op: str, label: str, start: float) -> bool:
        """Whether NCCL reduces a buffer, which it then does."""
        if self.nccl is None or not self.nccl.takes(buffer, op):
            return False
        self.nccl.sum(buffer)
        self.ledger.add(label, buffer.nbytes, perf_counter() - start)
        return True

    def _in_chunks(
        self, buffer: Buffer, label: str, start: float, call: Callable[[Message], MPI.Request],
        load: bool = True, store: bool = True,
    ) -> Buffer:  # fmt: skip
        """One call for each chunk, with the copies between device and host beside them. *Collective*."""
        cuts = cut(buffer)
        chunks = chunks_of(buffer, cuts, self.pool, write=store)
        which = chunks if load else None, chunks if store else None
        in_chunks(len(cuts), lambda number: call(chunks.memory(number)), *which)
        self.ledger.add(label, buffer.nbytes, perf_counter() - start)  # type: ignore[attr-defined]
        return buffer

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

        It shares this one's ledger. ``free`` it when done. Raises UsageError when ``color`` is negative.
        """
        if color < 0:
            raise UsageError(f"color = {color} is negative: every rank must belong to a group, numbered from 0.")
        return self._derived(self.mpi.Split(color, key))

    def split_shared(self) -> Communicator:
        """The communicator of the ranks that share this rank's host, in their order here. *Collective*."""
        return self._derived(self.mpi.Split_type(MPI.COMM_TYPE_SHARED, self.rank))

    def _derived(self, comm: MPI.Comm) -> Communicator:
        child = Communicator(comm, gpu_aware=self.gpu_aware, ledger=self.ledger, chunk=self.chunk)
        child.pool, child.pipelined, child.barriers = self.pool, self.pipelined, self.barriers
        child.nccl = None if self.nccl is None else self.nccl.beside(comm)
        child._owned = True
        return child

    def free(self) -> None:
        """Give back a communicator made by ``split``; does nothing to one that was passed in. *Collective*."""
        if self._owned and not MPI.Is_finalized():
            self._owned = False
            if self.nccl is not None:
                self.nccl.free()
            self.mpi.Free()

    def together(self, what: str, groups: bool = False) -> Together:
        """A ``with`` block that fails on all ranks or on none. *Collective* at its end.

        Inside the block a rank works alone: no collectives of this communicator. An ``HpcoptError`` of any rank is
        raised on all ranks, with the rank named in front unless all failed alike; any other exception becomes a
        ``RuntimeError`` on all ranks that carries the trace.

        Args:
            what: what the block does, for the message: "reading the training set".
            groups: the block has collectives of groups of these ranks. What is no ``HpcoptError`` then passes at once
                and ends the job, since the other ranks of its group may wait for this one in such a call.
        """
        return Together(self, what, groups)

    # Checks

    def _check_root(self, root: int) -> None:
        if not 0 <= root < self.size:
            raise UsageError(f"root = {root} is not a rank: this communicator has ranks 0 to {self.size - 1}.")


def _unknown_op(op: str) -> MPI.Op:
    raise UsageError(f"op = {op!r} is unknown{nearest(str(op), _OPS)} It is one of {', '.join(_OPS)}.")
