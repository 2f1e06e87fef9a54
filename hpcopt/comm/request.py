"""A collective in flight."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from hpcopt.comm.ledger import Ledger
from hpcopt.comm.mpi_library import load_mpi
from hpcopt.comm.staging import Staged

if TYPE_CHECKING:
    from mpi4py import MPI
else:
    MPI = load_mpi()


class Request:
    """A collective in flight. The buffer must not be touched before ``wait`` returned or ``test`` said True."""

    __slots__ = ("_buffer", "_label", "_ledger", "_requests", "_staged")

    def __init__(self, buffer: Any, staged: Staged, requests: list[MPI.Request], ledger: Ledger, label: str) -> None:
        """Hold the buffer and its memory alive until the call is complete."""
        self._buffer = buffer
        self._staged: Staged | None = staged
        self._requests = requests
        self._ledger = ledger
        self._label = label

    def wait(self) -> Any:
        """Wait until it is complete and return the buffer it was given, which now holds the result."""
        if self._staged is not None:
            start = perf_counter()
            MPI.Request.Waitall(self._requests)
            self._complete(self._staged, start)
        return self._buffer

    def test(self) -> bool:
        """Whether it is complete; if so the buffer holds the result. Also lets MPI make progress."""
        if self._staged is not None:
            start = perf_counter()
            if not MPI.Request.Testall(self._requests):
                return False
            self._complete(self._staged, start)
        return True

    def _complete(self, staged: Staged, start: float) -> None:
        staged.finish()
        self._staged = None
        self._ledger.add(self._label, 0, perf_counter() - start, calls=0)
