"""Who may ask a run to save and stop: SIGUSR1 to any of its ranks, a file ``halt`` in its directory, its own clock."""

from __future__ import annotations

import math
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from hpcopt.train.run.halt import Halt, read_halt, remove_halt

SECONDS_BETWEEN_LOOKS = 1.0


class Requests:
    """What this rank has been asked. A request is only noted here; it is met at the end of an iteration."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._signalled = False
        self._previous: Any = None
        self._directory: Path | None = None
        self._deadline, self._next_look = math.inf, 0.0
        # Whether the halt file has been seen and asks for no more than the end of the iteration.
        self._leaves = self._obeyed = False

    def listen(self, last: bool = False) -> Requests:
        """Take SIGUSR1 from now on, which would end the process otherwise. Only the main thread can.

        Args:
            last: the process ends with the run, so that afterwards the signal is ignored: a second one, which arrives
                when the first was obeyed, must not spoil the exit status.
        """
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGUSR1, self._note)
            if last:
                self._previous = signal.SIG_IGN
        return self

    def decline(self) -> None:
        """Leave SIGUSR1 to end the process, as it would without this: the run is not to be saved."""
        if self._previous is not None:
            self._previous = None
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)

    def watch(self, directory: Path | None, seconds: float | None) -> None:
        """Also look for the halt file in ``directory``, and stop ``seconds`` after this object was made."""
        self._directory = directory
        self._deadline = math.inf if seconds is None else self._began + seconds

    @property
    def pending(self) -> bool:
        """Whether the run should save and stop."""
        now = time.monotonic()
        if now >= self._next_look and not self._leaves:
            self._next_look = now + SECONDS_BETWEEN_LOOKS
            self._look()
        return self._signalled or self._leaves or now >= self._deadline

    def ends(self, saved: bool) -> bool:
        """Whether ``hpcopt stop`` has asked for the end by now, at once or as soon as the run is ``saved``."""
        halt = self._look()
        self._obeyed = halt is not None and halt.ends and (saved or not halt.after_checkpoint)
        return self._obeyed

    def close(self) -> None:
        """Give the signal back; remove the halt file, so that it does not stop the next start.

        What ``hpcopt stop`` has asked too late stays: a job that is requeued is to end all the same.
        """
        if self._previous is not None:
            signal.signal(signal.SIGUSR1, self._previous)
            self._previous = None
        if self._directory is not None and (self._obeyed or not (self._look() or Halt()).ends):
            remove_halt(self._directory)

    def _look(self) -> Halt | None:
        halt = None if self._directory is None else read_halt(self._directory)
        self._leaves = halt is not None and not halt.after_checkpoint
        return halt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
