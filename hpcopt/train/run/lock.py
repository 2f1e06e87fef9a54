"""The lock of a run directory: one process at a time, recognisably dead when its process is.

The lock is a small JSON file made with O_EXCL. On its own host a lock is dead when its process is. From another host it
is dead when it is of an earlier start of this process's own batch job, which was requeued; else only its age can tell,
so the owner touches it whenever it writes the status.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from hpcopt.errors import UsageError

logger = logging.getLogger(__name__)

FILE_NAME = "lock"
STALE_SECONDS = 600.0
"""Age after which a lock of another host counts as left behind."""

JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "COBALT_JOBID", "OAR_JOB_ID", "JOB_ID")
RESTART_VARIABLES = ("SLURM_RESTART_COUNT", "RESTARTED")


@dataclass(frozen=True)
class Owner:
    """The process that holds a run directory.

    Attributes:
        host: its host name.
        pid: its process number there.
        started: when it started, in clock ticks since the boot (Linux), which tells it from a later process with the
            same number; None where the system does not say.
        namespace: the process namespace in which ``pid`` counts (containers), empty where the system does not say.
        job: the job of the batch system, empty outside of one.
        restarts: how often that job was requeued, as far as the batch system says; 0 where it says nothing.
        nonce: distinguishes two locks of the same process.
    """

    host: str
    pid: int
    started: int | None = None
    namespace: str = ""
    job: str = ""
    nonce: int = 0
    restarts: int = 0

    def __str__(self) -> str:
        """Where it runs, for messages."""
        return f"process {self.pid} on {self.host}" + (f" (job {self.job})" if self.job else "")


def job_id() -> str:
    """The number of the batch job this process belongs to, empty outside of one."""
    return next((os.environ[name] for name in JOB_VARIABLES if os.environ.get(name)), "")


def job_restarts() -> int:
    """How often the batch job was requeued: counted by Slurm, at most 1 by LSF and Grid Engine, 0 elsewhere."""
    if os.environ.get("LSB_RESTART") == "Y":
        return 1
    counts = (os.environ.get(name, "") for name in RESTART_VARIABLES)
    return next((int(count) for count in counts if count.isdecimal()), 0)


def this_process() -> Owner:
    """The owner that a lock made now gets."""
    pid = os.getpid()
    return Owner(socket.gethostname(), pid, _start_time(pid), _namespace(), job_id(), time.time_ns(), job_restarts())


def read_owner(path: Path) -> Owner | None:
    """The owner named in a lock file, None when there is no lock or it cannot be read."""
    try:
        return Owner(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def is_alive(path: Path) -> bool:
    """Whether the lock at ``path`` exists and its process can still be at work."""
    owner = read_owner(path)
    if owner is not None and owner.host == socket.gethostname() and owner.namespace == _namespace():
        return _runs(owner.pid, owner.started)
    if owner is not None and owner.host != socket.gethostname() and of_an_earlier_start(owner):
        return False
    try:
        return time.time() - path.stat().st_mtime < STALE_SECONDS
    except OSError:
        return False


def of_an_earlier_start(owner: Owner) -> bool:
    """Whether the owner was at work in this process's own batch job, before that was requeued.

    The same job is not enough: two programs of one job, on two of its hosts, can be given the same run directory.
    """
    return owner.job != "" and owner.job == job_id() and job_restarts() > owner.restarts


def refuse_if_held(path: Path) -> None:
    """Raise UsageError when the lock at ``path`` belongs to a process that may be at work."""
    if not is_alive(path):
        return
    owner = read_owner(path)
    who = str(owner) if owner else "an unknown process"
    raise UsageError(
        f"The run directory {path.parent} is in use by {who}. One job at a time may write a run: wait for it, end it, "
        "or choose another directory with --run-dir. A process on another host counts as dead when it has not touched "
        f"the file {path.name!r} for {STALE_SECONDS / 60:.0f} minutes."
    )


class RunLock:
    """A lock this process holds."""

    def __init__(self, path: Path, owner: Owner) -> None:
        """Use ``acquire``."""
        self.path = path
        self.owner = owner

    @classmethod
    def acquire(cls, path: Path) -> RunLock:
        """Make the lock file. Raises UsageError when another process holds it; a dead one's lock is taken over."""
        owner = this_process()
        for _ in range(10):
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                refuse_if_held(path)
                _take_away(path)
                continue
            try:
                with os.fdopen(descriptor, "w") as file:
                    json.dump(asdict(owner), file)
            except OSError:
                # A full disk; an empty lock would keep others out, and the directory from being removed.
                path.unlink(missing_ok=True)
                raise
            return cls(path, owner)
        raise UsageError(f"The lock {path} could not be taken: others keep taking it. Start one job at a time.")

    @property
    def ours(self) -> bool:
        """Whether the file still names this process."""
        return read_owner(self.path) == self.owner

    def touch(self) -> None:
        """Show other hosts that the run is alive."""
        if self.ours:
            os.utime(self.path)

    def release(self) -> None:
        """Remove the lock file, if it is still ours."""
        if self.ours:
            self.path.unlink(missing_ok=True)


def _take_away(path: Path) -> None:
    """Remove a dead lock, but not one that another process put in its place at this moment."""
    dead = read_owner(path)
    aside = path.with_name(f"{path.name}.dead-{os.getpid()}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if read_owner(aside) != dead:
        try:
            os.link(aside, path)
        except OSError:
            logger.warning("Two processes took over the lock %s at the same moment.", path)
    else:
        logger.warning(
            "Taking over the run directory %s: %s, which held it, is gone.", path.parent, dead or "its owner"
        )
    aside.unlink(missing_ok=True)


def _runs(pid: int, started: int | None) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    now = _start_time(pid)
    return started is None or now is None or now == started


def _start_time(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in parentheses may hold spaces; the start time is field 22 of proc(5), the 20th after the name.
    return int(stat.rpartition(")")[2].split()[19])


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
