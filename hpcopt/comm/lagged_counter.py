"""The end of a phase by a lagged count: small non-blocking reductions tell every rank how many have finished.

The ranks count in rounds. In each round every rank gives two numbers, whether it has finished the phase and whether it
has made the smallest number of iterations, and the sums reach all ranks while they compute. The phase ends with the
first round in which all ranks have passed the minimum and enough have finished: as all ranks read the same sums, they
all end it by the same round, and none has a message in flight then that another one does not wait for.

This is the rule of Wang et al. 2018 (arXiv 1802.00130) for the conjugate gradients of distributed Newton methods, where
CG_min is ``minimum`` and r % is ``part``. Beside ``hpcopt.comm.quorum`` it needs no memory of another rank, and all
ranks decide alike; a rank that has finished stays until the phase has ended for all.
"""

from __future__ import annotations

from collections import deque
from time import perf_counter, sleep

import numpy as np

from hpcopt.comm.communicator import Communicator
from hpcopt.comm.quorum import LABEL, ranks_needed
from hpcopt.comm.request import Request
from hpcopt.errors import UsageError

MINIMUM = 3
"""CG_min: iterations that every rank makes unless it finishes before."""
LOOKS = 4
"""How often a rank looks at a round between two iterations, and twice more for each doubling of the ranks: a reduction
of R ranks takes log2 R steps, and the MPI library may take no more than one of them at a time."""
SHORTEST, LONGEST = 2e-5, 5e-4
"""Seconds that a rank sleeps between two looks at a round, twice as long each time: it leaves its core to others."""


class LaggedCounter:
    """Ends a phase on all ranks once a part of them has finished it; a busy rank is told at its next iteration.

    A round ends when the slowest rank has looked, so that it follows that rank's iterations. In ``goes_on`` or ``end``
    a rank learns what the last round came to, and gives its present state to the next. So a slow rank makes about two
    more iterations once enough others have finished: the one in which they do, and one until a round tells it. Who
    makes how many depends on the speed of the ranks; the caller records it, and ``hpcopt.train.pace.Replay`` can
    repeat it.

    All ranks call ``begin`` and ``end`` once in every phase, and ``goes_on`` between two of their own iterations.

    Args:
        comm: the ranks; its ledger books the rounds as "quorum".
        part: the part of the ranks that must have finished, above 0 and at most 1. With 1 no rank is ended.
        minimum: iterations after which a rank may be ended.

    Attributes:
        needed: the number of ranks that must have finished.
        rounds: rounds begun in this phase, the same on all ranks at its end.
    """

    def __init__(self, comm: Communicator, part: float, minimum: int = MINIMUM) -> None:
        """Local: the first ``begin`` makes the communicator of the rounds."""
        self.needed, self.rounds = ranks_needed(part, comm.size), 0
        self._comm, self._minimum = comm, minimum
        self._looks = LOOKS + 2 * comm.size.bit_length()
        self._group: Communicator | None = None
        self._in_flight: deque[Request] = deque()
        self._over = False

    def begin(self) -> None:
        """A phase begins. *Collective* the first time and after ``close``, local otherwise."""
        if self._group is None:
            # Of its own: a round must never meet a reduction of the method's vectors.
            self._group = self._comm.split(0, self._comm.rank)
        self.rounds, self._over = 0, False

    def goes_on(self, done: int) -> bool:
        """Whether this rank may make another iteration after ``done`` of them. Local: it never waits for another rank.

        A round that waited only for this rank is often complete at once, and the next one begins in the same call.
        """
        for _ in range(2):
            if self._over:
                break
            if not self._in_flight:
                self._give(finished=False, passed=done >= self._minimum)
            if not any(self._in_flight[0].test() for _ in range(self._looks)):
                return True
            self._read()
        return not self._over

    def end(self) -> None:
        """This rank has finished the phase, or was ended; takes part in the rounds until one ends it. *Collective*."""
        while not self._over:
            if not self._in_flight:
                self._give(finished=True, passed=True)
            self._wait()
            self._read()

    def close(self) -> None:
        """Give the communicator of the rounds back, after a phase that all ranks have ended. *Collective*.

        After an error there is nothing to call: a rank that failed alone ends the job.
        """
        if self._group is not None:
            self._group.free()
            self._group = None

    def _give(self, finished: bool, passed: bool) -> None:
        """Begin a round with this rank's two numbers."""
        assert self._group is not None, "begin comes first"
        counts = np.array([finished, passed], dtype=np.int64)
        self._in_flight.append(self._group.iallreduce(counts, label=LABEL))
        self.rounds += 1

    def _wait(self) -> None:
        """Wait for the oldest round in flight, mostly asleep."""
        start, pause = perf_counter(), SHORTEST
        while not self._in_flight[0].test():
            sleep(pause)
            pause = min(2 * pause, LONGEST)
        self._comm.ledger.add(LABEL, 0, perf_counter() - start, calls=0)

    def _read(self) -> None:
        """Take the oldest round, which is complete, and end the phase if it says so."""
        finished, passed = self._in_flight.popleft().wait()
        self._over = self._over or bool(passed == self._comm.size and finished >= self.needed)


class LockStepCounter(LaggedCounter):
    """The same with one round an iteration: every run ends on the same iterations, whatever the speed of the ranks.

    Before its iteration k + 1 each rank waits for the sums of round k - lag and gives its state after iteration k. So
    all ranks count the same rounds, and a rank that has not finished ends ``lag`` iterations after the one by which
    enough others had. Nothing is left to chance, and nobody is ahead of the slowest rank by more than ``lag``
    iterations: this is for runs that must repeat bit by bit, not for saving time.

    Args:
        comm: the ranks; its ledger books the rounds as "quorum".
        part: the part of the ranks that must have finished, above 0 and at most 1. With 1 no rank is ended.
        minimum: iterations after which a rank may be ended.
        lag: iterations that a round may take without anybody waiting for it, at least 1; the same on all ranks.

    Raises:
        UsageError: ``lag`` is below 1.
    """

    def __init__(self, comm: Communicator, part: float, minimum: int = MINIMUM, lag: int = 1) -> None:
        """Local: the first ``begin`` makes the communicator of the rounds."""
        super().__init__(comm, part, minimum)
        if lag < 1:
            raise UsageError(
                f"lag = {lag} is too small: a round takes at least one iteration. Give 1 or more.", collective=True
            )
        self._lag = lag

    def goes_on(self, done: int) -> bool:
        """Whether this rank may make another iteration after ``done`` of them. *Collective*; called after each one."""
        self._count(finished=False, passed=done >= self._minimum)
        return not self._over

    def end(self) -> None:
        """This rank has finished the phase, or was ended; counts the rounds until one ends it. *Collective*."""
        while not self._over:
            self._count(finished=True, passed=True)
        while self._in_flight:
            self._wait()
            self._read()

    def _count(self, finished: bool, passed: bool) -> None:
        """Read the round of ``lag`` iterations ago, and begin this iteration's unless that one ended the phase."""
        if len(self._in_flight) == self._lag:
            self._wait()
            self._read()
        if not self._over:
            self._give(finished, passed)
