"""A collective in flight."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from hpcopt.comm.blocks import pieces_of
from hpcopt.comm.chunks import Chunks, HostChunks, Message, chunks_of, cut, is_large
from hpcopt.comm.ledger import Ledger
from hpcopt.comm.mpi_library import load_mpi
from hpcopt.comm.staging import Staged, stage

if TYPE_CHECKING:
    from mpi4py import MPI

    from hpcopt.comm.communicator import Communicator
else:
    MPI = load_mpi()


class Request:
    """A collective in flight. The buffer must not be touched before ``wait`` returned or ``test`` said True."""

    __slots__ = ("_buffer", "_chunks", "_label", "_ledger", "_requests", "_sent")

    def __init__(
        self, buffer: Any, chunks: Chunks | None, requests: list[MPI.Request], ledger: Ledger, label: str,
        sent: tuple[Any, Staged] | None = None,
    ) -> None:  # fmt: skip
        """Hold the buffer and its memory alive until the calls, one for each chunk, are complete; None: they are.

        So is what is sent, where that is not the buffer.
        """
        self._buffer = buffer
        self._chunks = chunks
        self._requests = requests
        self._ledger = ledger
        self._label = label
        self._sent = sent

    def wait(self) -> Any:
        """Wait until it is complete and return the buffer it was given, which now holds the result."""
        if self._chunks is not None:
            start = perf_counter()
            for number, request in enumerate(self._requests):
                request.Wait()
                self._chunks.give(number)
            self._complete(self._chunks, start)
        return self._buffer

    def test(self) -> bool:
        """Whether it is complete; if so the buffer holds the result. Also lets MPI make progress."""
        if self._chunks is not None:
            start = perf_counter()
            if not MPI.Request.Testall(self._requests):
                return False
            for number in range(len(self._requests)):
                self._chunks.give(number)
            self._complete(self._chunks, start)
        return True

    def _complete(self, chunks: Chunks, start: float) -> None:
        chunks.end(store=True)
        if self._sent is not None:
            self._sent[1].finish(store=False)
        self._chunks = self._sent = None
        self._ledger.add(self._label, 0, perf_counter() - start, calls=0)


def started(
    comm: Communicator,
    buffer: Any,
    label: str,
    start: float,
    call: Callable[[Message], MPI.Request],
    load: bool = True,
    sent: tuple[Any, Staged] | None = None,
) -> Request:
    """Make the calls that do not block, all of them now, so that ranks start those of several buffers in one order.

    Args:
        comm: the ranks.
        buffer: what MPI writes.
        label: the ledger's account.
        start: when this began.
        call: makes one call, for one part of the buffer after the other.
        load: whether the buffer's numbers are sent.
        sent: the buffer that is sent instead, and as MPI sees it.
    """
    chunks: Chunks
    if comm.pipelined and is_large(buffer):
        cuts = cut(buffer)
        chunks = chunks_of(buffer, cuts, comm.pool, write=True, slots=len(cuts))
        for number in range(len(cuts) if load else 0):
            chunks.fetch(number)
        requests = [call(chunks.memory(number)) for number in range(len(cuts))]
    else:
        staged = stage(buffer, comm.pool, comm.gpu_aware, load=load)
        requests = [call(part) for part in pieces_of(staged, 0, staged.count, comm.chunk)]
        chunks = HostChunks(staged)
    comm.ledger.add(label, buffer.nbytes, perf_counter() - start)
    return Request(buffer, chunks, requests, comm.ledger, label, sent)
