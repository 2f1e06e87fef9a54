"""Who may ask a run to save and stop: SIGUSR1 to any of its ranks, a file ``halt`` in its directory, its own clock."""

from __future__ import annotations

import logging
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

HALT = "halt"
"""Name of the file in the run directory."""

SECONDS_BETWEEN_LOOKS = 1.0


class Requests:
    """What this rank has been asked. A request is only noted here; it is met at the end of an iteration."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._signalled = False
        self._previous: Any = None
        self._halt: Path | None = None
        self._deadline: float | None = None
        self._next_look = 0.0
        self._found = False

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
        self._halt = None if directory is None else directory / HALT
        self._deadline = None if seconds is None else self._began + seconds

    @property
    def pending(self) -> bool:
        """Whether the run should save and stop."""
        now = time.monotonic()
        if self._halt is not None and not self._found and now >= self._next_look:
            self._next_look = now + SECONDS_BETWEEN_LOOKS
            self._found = self._halt.exists()
        return self._signalled or self._found or (self._deadline is not None and now >= self._deadline)

    def close(self) -> None:
        """Give the signal back; remove the halt file, which is obeyed now, so that it does not stop the next start."""
        if self._previous is not None:
            signal.signal(signal.SIGUSR1, self._previous)
            self._previous = None
        if self._halt is not None:
            try:
                self._halt.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("The file %s could not be removed: %s.", self._halt, error.strerror)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
