"""The end of a phase without communication: enough ranks have finished it, as a one-sided counter tells.

No rank sends anything to another. Every rank adds 1 to a counter in the memory of rank 0 when it has finished, and
reads it between two of its own iterations. The counter only grows: each phase adds as many as there are ranks, so
there is nothing to set back, and no moment at which a slow rank could count for the wrong phase.
"""

from __future__ import annotations

import math
from array import array
from time import perf_counter
from typing import TYPE_CHECKING, cast

from hpcopt.comm.communicator import Communicator
from hpcopt.comm.mpi_library import load_mpi

if TYPE_CHECKING:
    from mpi4py import MPI
else:
    MPI = load_mpi()

OWNER = 0
"""The rank whose memory holds the counter."""
BYTES = 8
LABEL = "quorum"
"""The ledger's account, the same for every way to count."""
ROUNDING = 1e-9
"""A part of the ranks that is a whole number but for rounding, such as 0.07 of 100, is that number."""


def ranks_needed(part: float, ranks: int) -> int:
    """How many of so many ranks a part of them is, rounded up; at least one."""
    return max(1, math.ceil(part * ranks - ROUNDING))


class Quorum:
    """Ends a phase on this rank as soon as a part of all ranks has finished it.

    All ranks call ``begin`` and ``end`` once in every phase, and between two phases all ranks wait for all others in
    some collective call. Between ``begin`` and ``end`` nobody waits for anybody on one node: the counter lies in
    shared memory there, and a rank that computes for seconds, the owner included, does not keep the others from it.
    Over a network that is so where it carries out atomic operations by itself (InfiniBand and the like). Elsewhere,
    over TCP for instance, MPI works on the counter when rank 0 next calls MPI, at its next iteration at the latest.

    Args:
        comm: the ranks; ``ledger`` books the reads and additions as "quorum".
        part: the part of the ranks that must have finished, above 0 and at most 1.
    """

    def __init__(self, comm: Communicator, part: float) -> None:
        """Local: the first ``begin`` makes the counter."""
        self.needed = ranks_needed(part, comm.size)
        self._comm = comm
        self._window: MPI.Win | None = None
        self._before = 0
        self._one, self._found = array("q", [1]), array("q", [0])

    def begin(self) -> None:
        """A phase begins. *Collective* the first time and after ``close``, local otherwise."""
        if self._window is None:
            self._window = self._allocate()
            self._before = 0
        else:
            self._before += self._comm.size

    def goes_on(self, done: int) -> bool:
        """Whether this rank may make another iteration: not enough ranks have finished the phase."""
        return self.finished() < self.needed

    def end(self) -> None:
        """This rank has finished the phase. Local: it returns when the others can see it."""
        self._add(MPI.SUM)

    def finished(self) -> int:
        """Number of ranks that have finished the phase. Local."""
        return self._add(MPI.NO_OP) - self._before

    def close(self) -> None:
        """Give the counter back, after a phase that all ranks have ended. *Collective*.

        After an error there is nothing to call: a rank that failed alone ends the job.
        """
        if self._window is not None:
            self._window.Unlock_all()
            self._window.Free()
            self._window = None

    def _allocate(self) -> MPI.Win:
        """The counter at 0. *Collective*.

        In memory that MPI allocates, which it can share on a node. With memory of ours, every access would wait until
        the owner calls MPI.
        """
        comm = self._comm
        size, group = BYTES if comm.rank == OWNER else 0, cast("MPI.Intracomm", comm.mpi)
        window = MPI.Win.Allocate(size, BYTES, comm=group)
        if comm.rank == OWNER:
            window.Lock(OWNER, MPI.LOCK_EXCLUSIVE)
            window.tomemory()[:] = bytes(BYTES)
            window.Unlock(OWNER)
        comm.barrier(label=LABEL)
        window.Lock_all(MPI.MODE_NOCHECK)
        return window

    def _add(self, op: MPI.Op) -> int:
        """The counter as it was before 1 was added to it, or was not."""
        window, start = self._window, perf_counter()
        assert window is not None, "begin comes first"
        window.Fetch_and_op(self._one, self._found, OWNER, 0, op)
        window.Flush(OWNER)
        self._comm.ledger.add(LABEL, BYTES, perf_counter() - start)
        return self._found[0]
