"""A collective in flight."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from hpcopt.comm.chunks import Chunks
from hpcopt.comm.ledger import Ledger
from hpcopt.comm.mpi_library import load_mpi

if TYPE_CHECKING:
    from mpi4py import MPI
else:
    MPI = load_mpi()


class Request:
    """A collective in flight. The buffer must not be touched before ``wait`` returned or ``test`` said True."""

    __slots__ = ("_buffer", "_chunks", "_label", "_ledger", "_requests")

    def __init__(
        self, buffer: Any, chunks: Chunks | None, requests: list[MPI.Request], ledger: Ledger, label: str
    ) -> None:
        """Hold the buffer and its memory alive until the calls, one for each chunk, are complete; None: they are."""
        self._buffer = buffer
        self._chunks = chunks
        self._requests = requests
        self._ledger = ledger
        self._label = label

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
        self._chunks = None
        self._ledger.add(self._label, 0, perf_counter() - start, calls=0)
