"""The keys of the job file's [slurm] table."""

from __future__ import annotations

import datetime
import re
import shlex
from dataclasses import dataclass, field

from hpcopt.checks import check_number, is_whole
from hpcopt.errors import UsageError

SAVE_BEFORE = 120
UNLIMITED = ("UNLIMITED", "INFINITE")
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})")


@dataclass(frozen=True)
class SlurmOptions:
    """``[slurm]``: what ``hpcopt submit`` asks for. It has no effect on what a run computes.

    Raises:
        UsageError: a value breaks its rule.
    """

    partition: str | None = None
    """Partition of the cluster; its default when not given."""
    account: str | None = None
    """Who pays."""
    time: str | int | datetime.time | None = None
    """Time limit of one start as Slurm reads it: "HH:MM:SS", "D-HH:MM:SS", or a number of minutes."""
    nodes: int = 1
    """Hosts."""
    ntasks_per_node: int = 1
    """Ranks on each of them."""
    cpus_per_task: int | None = None
    """Cores of each rank."""
    gpus_per_task: int | None = None
    """GPUs of each rank."""
    launcher: str = "auto"
    """What starts the ranks: auto chooses between srun and mpirun; else a command such as "srun --mpi=pmix"."""
    setup: list[str] = field(default_factory=list)
    """Lines of the script before the run, such as "module load openmpi"."""
    skip: list[str] = field(default_factory=list)
    """Options of sbatch that the script would have and this cluster does not want, such as "--ntasks-per-node"."""
    extra: list[str] = field(default_factory=list)
    """More options of sbatch, such as "--mem=8G"; one that the script has anyway takes its place."""
    save_before: int | None = None
    """Seconds before the time limit at which the run is told to save itself; by default 120, or a quarter of the time
    limit where that is less."""
    max_requeues: int = 20
    """How often a job that was saved is started again by itself; 0: never."""

    def __post_init__(self) -> None:
        for key in ("nodes", "ntasks_per_node", "cpus_per_task", "gpus_per_task", "save_before"):
            check_number(f"slurm.{key}", getattr(self, key), "at least 1", lambda x: x >= 1)
        check_number("slurm.max_requeues", self.max_requeues, "at least 0", lambda x: x >= 0)
        for key in ("partition", "account", "launcher"):
            _one_line(f"slurm.{key}", getattr(self, key))
        for key in ("skip", "extra"):
            for option in getattr(self, key):
                _one_line(f"slurm.{key}", option)
                _check_option(f"slurm.{key}", option)
        self._check_launcher()
        if self.limit is not None and self.limit <= self.signal_seconds:
            raise UsageError(
                f"slurm.save_before = {self.save_before} seconds before the end of slurm.time = {self.time_text} the "
                "run would be told to save, which is before it has begun. Give it more time (--time), or make "
                "slurm.save_before (--save-before) less; loading the job and saving it must both fit in."
            )

    @property
    def ranks(self) -> int:
        """How many ranks the job has."""
        return self.nodes * self.ntasks_per_node

    @property
    def time_text(self) -> str | None:
        """The time limit as sbatch reads it."""
        return None if self.time is None else str(self.time)

    @property
    def signal_seconds(self) -> int:
        """Seconds before the time limit at which the run is told to save itself."""
        if self.save_before is not None:
            return self.save_before
        return SAVE_BEFORE if self.limit is None else min(SAVE_BEFORE, self.limit // 4)

    @property
    def limit(self) -> int | None:
        """Seconds of one start, which Slurm rounds up to whole minutes; None where there is no limit in the job file.

        Raises:
            UsageError: ``time`` is no time.
        """
        if self.time is None or (isinstance(self.time, str) and self.time.upper() in UNLIMITED):
            return None
        found = _TIME.fullmatch(self.time_text or "")
        if found is None or not (isinstance(self.time, (str, datetime.time)) or is_whole(self.time)):
            raise UsageError(f"slurm.time = {self.time!r} is not a time limit. {_TIMES}")
        clock = [int(part) for part in found["clock"].split(":")]
        if found["days"] is None and len(clock) < 3:
            clock = [0, *clock]  # without days and hours, the first number is minutes
        hours, minutes, seconds = [*clock, 0, 0][:3]
        total = ((int(found["days"] or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
        if total == 0:
            raise UsageError(f"slurm.time = {self.time_text} leaves no time. {_TIMES}")
        return -(-total // 60) * 60

    def _check_launcher(self) -> None:
        try:
            words = shlex.split(self.launcher)
        except ValueError as error:
            raise UsageError(f"slurm.launcher = {self.launcher!r} is not a command: {error}.") from error
        if not words or words[0].startswith("-"):
            raise UsageError(
                f'slurm.launcher = {self.launcher!r} must be "auto" or a command: "srun --mpi=pmix", "mpirun".'
            )
        if words[0] == "srun" and any(word in ("mpirun", "mpiexec") for word in words):
            raise UsageError(
                f"slurm.launcher = {self.launcher!r} starts a launcher by a launcher, once for each rank; with Open "
                "MPI that hangs. Keep one of the two."
            )


_TIMES = (
    'Write "HH:MM:SS", "D-HH:MM:SS", "D-HH", "MM:SS", or a number of minutes (--time 01:30:00 is an hour and a half).'
)


def _one_line(key: str, value: str | None) -> None:
    if value is not None and (not value.strip() or not value.isprintable()):
        raise UsageError(f"{key} = {value!r} must be text on one line, and not be empty.")


def _check_option(key: str, option: str) -> None:
    if not re.match(r"--?[A-Za-z]", option):
        raise UsageError(f"{key} = {option!r} is not an option of sbatch; they look like --mem=8G or -C fast.")
