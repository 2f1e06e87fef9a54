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
        self._signalled = False
        self._previous: Any = None
        self._halt: Path | None = None
        self._deadline: float | None = None
        self._next_look = 0.0
        self._found = False

    def listen(self) -> Requests:
        """Take SIGUSR1 from now on, which would end the process otherwise. Only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGUSR1, self._note)
        return self

    def watch(self, directory: Path | None, seconds: float | None) -> None:
        """Also look for the halt file in ``directory``, and stop after ``seconds`` from now; for one rank."""
        self._halt = None if directory is None else directory / HALT
        self._deadline = None if seconds is None else time.monotonic() + seconds

    @property
    def pending(self) -> bool:
        """Whether the run should save and stop."""
        now = time.monotonic()
        if self._halt is not None and not self._found and now >= self._next_look:
            self._next_look = now + SECONDS_BETWEEN_LOOKS
            self._found = self._halt.exists()
        return self._signalled or self._found or (self._deadline is not None and now >= self._deadline)

    def close(self) -> None:
        """Take no more signals; remove a halt file that was obeyed, so that the next start is not stopped by it."""
        if self._previous is not None:
            signal.signal(signal.SIGUSR1, self._previous)
            self._previous = None
        if self._found and self._halt is not None:
            try:
                self._halt.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("The file %s could not be removed: %s.", self._halt, error.strerror)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
