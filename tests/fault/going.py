"""Jobs that are going on while a test looks at them, sends them signals or kills them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.fault import conftest
from tests.fault.conftest import Finished, Installation, own_mpi, run_words
from tests.support.processes import catches


class Job:
    """A job on 2 ranks that is going on."""

    def __init__(self, path: Path, mpi: Installation, settings: Sequence[str] = ()) -> None:
        self.path, self.mark = path, os.urandom(8).hex()
        env = conftest.environment(mpi.lib, {}) | {conftest.MARK: self.mark}
        words = [mpi.mpirun, "-n", "2", *conftest.command(run_words(*settings))]
        self.out, self.err = open(path / "stdout", "w+"), open(path / "stderr", "w+")
        self.process = subprocess.Popen(words, env=env, cwd=path, stdout=self.out, stderr=self.err, text=True)

    def ranks(self) -> list[int]:
        """Process numbers of the ranks that have come as far as Python."""
        found = []
        for number in conftest.members(self.mark):
            with suppress(OSError):
                if b"hpcopt" in Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0"):
                    found.append(number)
        return sorted(set(found) - {self.process.pid})

    def wait_for(self, ready: Callable[[], bool], seconds: float = 100.0) -> None:
        """Until ``ready``, or the job has ended."""
        deadline = time.monotonic() + seconds
        while not ready() and self.process.poll() is None:
            assert time.monotonic() < deadline, "the job did not come so far"
            time.sleep(0.005)

    def listens(self) -> bool:
        """Whether both ranks catch SIGUSR1."""
        ranks = self.ranks()
        return len(ranks) == 2 and all(catches(number, signal.SIGUSR1) for number in ranks)

    def finish(self, timeout: float = 100.0) -> Finished:
        """Wait for its end."""
        try:
            self.process.wait(timeout)
        finally:
            conftest.end(self.process, self.mark)
        for stream in (self.out, self.err):
            stream.seek(0)
        return Finished(self.process.returncode, self.out.read(), self.err.read(), 0.0, time.time())


@contextmanager
def started(path: Path, *settings: str, mpi: Installation | None = None) -> Iterator[Job]:
    """A job that is ended in any case."""
    job = Job(path, mpi or own_mpi(), settings)
    try:
        yield job
    finally:
        conftest.end(job.process, job.mark)
        job.out.close()
        job.err.close()
