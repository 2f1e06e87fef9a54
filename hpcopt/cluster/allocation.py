"""What the batch system says of the job that this process is a part of."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

from hpcopt.cluster.queue import ask

_NO_LIMIT = "UNLIMITED"


@dataclass(frozen=True)
class Allocation:
    """A job of Slurm from within.

    Attributes:
        job: its number.
        nodes: how many it has, 0 where that is not said.
        tasks: how many ranks a launcher starts by default, in the script of the job; 0 where that is not said.
        limited: whether its time has an end.
        seconds_left: until then; None without an end, and where Slurm does not say.
    """

    job: str
    nodes: int
    tasks: int
    limited: bool
    seconds_left: float | None


def find_allocation(environ: Mapping[str, str] = os.environ) -> Allocation | None:
    """The job of Slurm around this process, None outside of one. Asks ``squeue`` where the environment has no end."""
    job = environ.get("SLURM_JOB_ID")
    if not job:
        return None
    # A launcher's own step may have other numbers, in SLURM_NNODES also when it is mpirun's.
    nodes, tasks = (_number(environ.get(name, "")) for name in ("SLURM_JOB_NUM_NODES", "SLURM_NTASKS"))
    if end := _number(environ.get("SLURM_JOB_END_TIME", "")):
        return Allocation(job, nodes, tasks, True, max(0.0, end - time.time()))
    left = ask("squeue", "--noheader", "--jobs", job, "--format", "%L").strip()
    return Allocation(job, nodes, tasks, left != _NO_LIMIT, seconds_of(left))


def seconds_of(left: str) -> float | None:
    """Seconds of ``days-hours:minutes:seconds`` as Slurm prints it, None for anything else it may say."""
    days, _, clock = left.rpartition("-")
    parts = clock.split(":")
    if len(parts) not in (2, 3) or not all(part.isdigit() for part in [*parts, days or "0"]):
        return None
    hours, minutes, seconds = (int(part) for part in ["0", *parts][-3:])
    return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
