"""A rank that makes no progress is reported: which one it is, what it was doing, and where its code stands.

Every rank notes what it is about in ``log/rankNNNN.silent``. Once it has not begun anything else for ``seconds``,
faulthandler adds the stacks of its threads there, which needs no help of the interpreter: the rank may hang in C code.
The first rank whose own watching thread still runs puts the notes of all ranks together into one report.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import re
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

logger = logging.getLogger(__name__)

NOTE_BYTES = 128
"""A note of what the rank is about; the stacks come behind it."""

NOTE = b"%%-%d.%ds\n" % (NOTE_BYTES - 1, NOTE_BYTES - 1)
"""It fills them."""

GRACE = 0.1
"""The report waits for this part of the time more, so that all ranks have written their stacks."""

SILENCE = "silence"
"""A file in the folder of logs, as old as the latest report."""

COMMUNICATION = "/hpcopt/comm/"


class Watchdog:
    """Watches the progress of this rank, and reports where no rank makes any. A context manager; only for one run.

    Args:
        directory: the run directory, which all ranks see.
        rank: this rank.
        size: number of ranks.
        seconds: how long a rank may be about one thing.
        abort: whether to end the job after the report.
    """

    def __init__(self, directory: Path, rank: int, size: int, seconds: float, abort: bool) -> None:
        self._folder, self._rank, self._size = directory / "log", rank, size
        self._seconds, self._abort = seconds, abort
        self._path = note_path(directory, rank)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self._begun = self._armed = 0.0
        self._reported = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hpcopt-watchdog", daemon=True)

    def begin(self, what: str) -> None:
        """The rank begins ``what``: a step, an evaluation, a save."""
        self._begun, self._reported = time.monotonic(), False
        # A disk that is full ends no run.
        with suppress(OSError):
            os.pwrite(self._file, NOTE % what.encode(), 0)
            # A new timer is a new thread, so not for every short step: the time is then up to a quarter shorter.
            if self._begun - self._armed > self._seconds / 4:
                self._armed = self._begun
                os.ftruncate(self._file, NOTE_BYTES)
                os.lseek(self._file, NOTE_BYTES, os.SEEK_SET)
                faulthandler.dump_traceback_later(self._seconds * (1 + GRACE / 2), file=self._file)

    def __enter__(self) -> Watchdog:
        self.begin("start")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._ended.set()
        self._thread.join()
        os.close(self._file)
        self._path.unlink(missing_ok=True)

    def _watch(self) -> None:
        # Each rank waits a little longer than the one before it, so that one report is enough.
        patience = self._seconds * (1 + GRACE) + min(0.5 * self._rank, 5.0)
        while not self._ended.wait(min(1.0, self._seconds / 10)):
            if not self._reported and time.monotonic() - self._begun > patience:
                self._reported = True
                self._report()

    def _report(self) -> None:
        if not self._is_first():
            return
        text = describe_silence(self._folder.parent, self._size, self._seconds)
        logger.warning("%s", text)
        if self._rank:  # the log shows warnings of rank 0 on standard error already
            print(text, file=sys.stderr, flush=True)
        if self._abort:
            os._exit(1)

    def _is_first(self) -> bool:
        """Whether no other rank has reported this silence."""
        path = self._folder / SILENCE
        try:
            if time.time() - path.stat().st_mtime <= time.monotonic() - self._begun:
                return False
        except OSError:
            pass
        try:
            path.touch()
        except OSError:
            pass  # better two reports than none
        return True


def note_path(directory: Path, rank: int) -> Path:
    """Where a rank notes what it is about."""
    return directory / "log" / f"rank{rank:04d}.silent"


def describe_silence(directory: Path, ranks: int, seconds: float) -> str:
    """One paragraph on who waits and who does not, from the notes of all ranks."""
    waiting, others = [], []
    for rank in range(ranks):
        try:
            content = note_path(directory, rank).read_text(errors="replace")
        except OSError:
            others.append(f"Rank {rank} left no note.")
            continue
        what, frames = content[:NOTE_BYTES].strip(), main_frames(content[NOTE_BYTES:])
        if not frames:
            others.append(f"Rank {rank} gives no sign in its {what}: it is stopped, its host is gone, or it is busy.")
        elif any(COMMUNICATION in frame for frame in frames[:4]):
            waiting.append(str(rank))
        else:
            others.append(f"Rank {rank} is silent in its {what}, at {'; called from '.join(frames[:3])}.")
    heard = f" In communication, waiting for others: rank {', '.join(waiting)}." if waiting else ""
    return f"No rank has made progress for {seconds:g} s. {' '.join(others)}{heard}"


def main_frames(stacks: str) -> list[str]:
    """The main thread's frames in what faulthandler wrote, the innermost first, as ``file:line in function``."""
    for block in re.split(r"^(?:Current thread|Thread) .*$", stacks, flags=re.MULTILINE):
        frames = re.findall(r'File "([^"]+)", line (\d+) in (\S+)', block)
        if frames and not any(path.endswith("threading.py") for path, _, _ in frames):
            return [f"{path}:{line} in {function}" for path, line, function in frames]
    return []
