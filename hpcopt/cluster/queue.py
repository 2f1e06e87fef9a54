"""A job in the queue of Slurm: submit it, and follow it to its end."""

from __future__ import annotations

import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpcopt.errors import HpcoptError, UsageError

FINAL = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"),
    *("PREEMPTED", "REVOKED"),
)
"""States in which a job stays, unless it is requeued."""
FIRST_WAIT, LONGEST_WAIT = 2.0, 30.0
"""Seconds between two looks; Slurm forgets a job five minutes after its end where nothing else is configured."""
MOST_FAILURES = 40
"""Looks in a row at which Slurm does not answer before the job is given up: it may be down for a while."""

_FIELDS = re.compile(r"(?<!\S)(JobId|ArrayTaskId|JobState|Reason|Restarts|ExitCode|NodeList)=(\S*)")


def submit(script: Path) -> str:
    """Hand a script to sbatch and return the number of the job.

    Raises:
        UsageError: there is no sbatch, it refuses, or it was asked not to submit (--test-only).
    """
    try:
        done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UsageError(
            f"sbatch cannot be started ({error.strerror}): this machine submits no jobs to Slurm. The script is in "
            f"{script}; on a login node of the cluster, sbatch {script} submits it. Without Slurm, mpirun -n 4 hpcopt "
            "run JOB.toml starts the same job at once."
        ) from error
    if done.returncode:
        words = " ".join(done.stderr.replace("sbatch: error: ", "").split())
        raise UsageError(
            f"sbatch refused the job: {words or f'status {done.returncode}'}. Change the option it speaks of, here or "
            "in [slurm] of the job file; slurm.skip leaves out one that this cluster does not know. The script is in "
            f"{script}."
        )
    if not done.stdout.split():
        words = " ".join(done.stderr.split())
        raise UsageError(
            f"sbatch submitted nothing{f' and said: {words}' if words else ''}. Leave out an option that asks it not "
            f"to, such as --test-only. The script is in {script}."
        )
    # Of several clusters also the name is told, after a semicolon; a site's own remarks may stand before.
    return done.stdout.split()[-1].partition(";")[0]


@dataclass(frozen=True)
class Look:
    """A job, or one task of an array, at one moment.

    Attributes:
        state: as Slurm calls it.
        status: exit status of the script, 128 + signal when it was killed; 1 when it ended without one, but not well.
        reason: why it waits.
        restarts: how often it was requeued.
        nodes: where it runs.
    """

    state: str
    status: int = 0
    reason: str = ""
    restarts: int = 0
    nodes: str = ""

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.state in FINAL


class Follower:
    """Waits for a job, through all its requeues.

    Args:
        job: its number.
        report: told in a line when something has changed.
        sleep: waits so many seconds.
    """

    def __init__(
        self, job: str, report: Callable[[str], object], sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self.job, self._report, self._sleep = job, report, sleep
        self._looks: dict[str, Look] = {}
        self._said = ""

    def wait(self) -> int:
        """Wait for the end and return the exit status, of an array the largest of its tasks.

        Raises:
            HpcoptError: Slurm no longer says anything of the job.
        """
        seconds, failures, confirmed = FIRST_WAIT, 0, False
        while True:
            known = self._look()
            failures = 0 if known else failures + 1
            if failures > MOST_FAILURES:
                raise HpcoptError(
                    f"Slurm has said nothing of job {self.job} when asked {failures} times. The job may go on all the "
                    f"same: squeue -j {self.job}, sacct -j {self.job}."
                )
            over = bool(known) and all(look.ended for look in self._looks.values())
            # A job that is about to be requeued can look as if it had failed, for a moment.
            if over and (confirmed or all(look.state == "COMPLETED" for look in self._looks.values())):
                return max(look.status for look in self._looks.values())
            confirmed = over
            self._sleep(seconds)
            seconds = min(1.5 * seconds, LONGEST_WAIT)

    def _look(self) -> bool:
        """Ask Slurm; whether it knows the job."""
        found = shown(ask("scontrol", "--oneliner", "show", "job", self.job))
        # Tasks that ended long ago are forgotten by scontrol; one that waits has no record of its own yet.
        ended = {task: look for task, look in self._looks.items() if look.ended}
        if not found:
            accounted = accounts(ask("sacct", "-n", "-P", "-X", "-j", self.job, "-o", "JobID,State,ExitCode"))
            found = accounted if accounted or not ended or len(ended) < len(self._looks) else ended
        if found:
            self._looks = ended | found
            self._tell()
        return bool(found)

    def _tell(self) -> None:
        if len(self._looks) == 1:
            (look,) = self._looks.values()
            line = look.state + (f" ({look.reason})" if look.state == "PENDING" and look.reason else "")
            line += f" on {look.nodes}" if look.state == "RUNNING" and look.nodes else ""
        else:
            counts = Counter(look.state for look in self._looks.values())
            line = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        restarts = sum(look.restarts for look in self._looks.values())
        line += f", requeued {restarts} times" if restarts > 1 else ", requeued once" if restarts else ""
        if line != self._said:
            self._report(f"job {self.job}: {line}")
            self._said = line


def shown(text: str) -> dict[str, Look]:
    """What ``scontrol --oneliner show job`` prints: one line a job, or a task of an array."""
    found = {}
    for line in text.splitlines():
        values = dict(_FIELDS.findall(line))
        if "JobId" in values and "JobState" in values:
            reason = values.get("Reason", "")
            found[values["JobId"]] = Look(
                values["JobState"],
                _status(values["JobState"], values.get("ExitCode", "0:0")),
                "" if reason == "None" else reason,
                int(values.get("Restarts", "0")),
                values.get("NodeList", "").removeprefix("(null)"),
            )
    return found


def accounts(text: str) -> dict[str, Look]:
    """What ``sacct -n -P -X -o JobID,State,ExitCode`` prints: ``12_1|CANCELLED by 1000|0:15`` a line."""
    found = {}
    for line in text.splitlines():
        job, *rest = line.split("|")
        if len(rest) == 2 and rest[0]:
            state = rest[0].split()[0]
            found[job] = Look(state, _status(state, rest[1]))
    return found


def _status(state: str, code: str) -> int:
    """``ExitCode=75:0`` is a status and a signal."""
    status, _, killed = code.partition(":")
    number = int(status or 0) or (128 + int(killed) if int(killed or 0) else 0)
    return number or (1 if state in FINAL and state != "COMPLETED" else 0)


def ask(*command: str) -> str:
    """What a command prints, empty where it cannot be started, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""
