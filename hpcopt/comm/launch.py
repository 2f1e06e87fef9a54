"""Who am I: which launcher started this process, whether its ranks found each other, and how many threads are mine."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hpcopt.comm.faults import abort_on_exception, mark_collective, run_guarded
from hpcopt.errors import UsageError

if TYPE_CHECKING:
    from hpcopt.comm.communicator import Communicator

__all__ = [
    "Threads",
    "abort_on_exception",
    "affinity",
    "check_launch",
    "choose_threads",
    "detect_launcher",
    "expected_ranks",
    "run_guarded",
    "threads_per_rank",
]

_LAUNCHERS = (
    # variable, launcher; the innermost first: mpirun inside a Slurm step also sees the step's variables
    ("OMPI_COMM_WORLD_SIZE", "mpirun (Open MPI)"),
    ("MV2_COMM_WORLD_SIZE", "mpirun (MVAPICH)"),
    ("HYDI_CONTROL_FD", "mpirun (MPICH)"),
)
_SPECIAL_STEPS = range(4294967290, 4294967296)
"""Step numbers Slurm gives to the batch script, the interactive shell and the like, which are not launches."""

ALONE = "HPCOPT_SEPARATE_RUNS"
"""Environment variable that says that N separate runs of one rank are meant."""


class Threads(NamedTuple):
    """How many threads each rank computes with, and why.

    Attributes:
        threads: threads a rank, the same on all ranks so that sums are made in the same order everywhere.
        source: ``"affinity"``, or ``"OMP_NUM_THREADS"`` when the user decided.
        cores: cores this rank may run on.
        local_rank: number of this rank among those of its host.
        local_size: number of ranks on this host.
    """

    threads: int
    source: str
    cores: int
    local_rank: int
    local_size: int


def detect_launcher(environ: Mapping[str, str] = os.environ) -> str:
    """Name what started this process: ``"mpirun (Open MPI)"``, ``"srun"``, ``"none"`` and so on."""
    for variable, name in _LAUNCHERS:
        if variable in environ:
            return name
    if _slurm_step(environ):
        return "srun"
    if "PMI_SIZE" in environ or "PMI_RANK" in environ:
        return "mpirun (MPICH)"
    return "none"


def expected_ranks(environ: Mapping[str, str] = os.environ) -> dict[str, int]:
    """The launcher's variables that say how many ranks it started, with their values.

    In a batch script ``SLURM_NTASKS`` is set although nothing was launched, so it counts only inside a step.
    """
    found = {name: _number(environ, name) for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")}
    if "SLURM_STEP_NUM_TASKS" in environ:
        found["SLURM_STEP_NUM_TASKS"] = _number(environ, "SLURM_STEP_NUM_TASKS")
    elif _slurm_step(environ):
        found["SLURM_NTASKS"] = _number(environ, "SLURM_NTASKS")
    return {name: count for name, count in found.items() if count}


def check_launch(size: int, environ: Mapping[str, str] = os.environ, library: str = "") -> None:
    """Refuse to run as one of N worlds of size one, which would each do all the work and overwrite each other.

    Args:
        size: number of ranks MPI reports.
        environ: the process's environment.
        library: name of the MPI library that Python loaded, for the message.

    Raises:
        UsageError: the launcher started several processes, but MPI knows only this one.
    """
    seen = {name: count for name, count in expected_ranks(environ).items() if count > 1}
    if size != 1 or not seen or environ.get(ALONE, "0") not in ("", "0"):
        return
    count = max(seen.values())
    names = ", ".join(f"{name}={value}" for name, value in seen.items())
    error = UsageError(
        f"{count} processes were started ({names}), but each is alone in its own MPI world of size 1: the launcher "
        f"({_launcher_used(environ)}) does not speak the language of the MPI library in use"
        f"{f' ({library})' if library else ''}, and {count} separate runs would overwrite each other. "
        f"{_likely_fix(count, environ, library)} If separate runs are meant, set {ALONE}=1."
    )
    mark_collective(error, 0)
    raise error


def _launcher_used(environ: Mapping[str, str]) -> str:
    name = detect_launcher(environ)
    kind = environ.get("SLURM_MPI_TYPE")
    return f"srun --mpi={kind}" if name == "srun" and kind else name


def _likely_fix(count: int, environ: Mapping[str, str], library: str) -> str:
    line = f"{_own_mpirun()} -n {count} hpcopt run JOB.toml"
    if detect_launcher(environ) != "srun":
        return f"Start with the mpirun that belongs to this MPI library: {line}."
    values = ["pmix", "pmix_v5", "pmix_v4"] if "Open MPI" in library else ["pmi2", "pmix", "cray_shasta"]
    options = " or ".join(f"--mpi={value}" for value in values)
    return (
        f"Try srun {options} (srun --mpi=list shows what this cluster has), or inside the allocation use the mpirun "
        f"that belongs to this MPI library instead of srun: {line}."
    )


def _own_mpirun() -> str:
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else shutil.which("mpirun") or "mpirun"


def _slurm_step(environ: Mapping[str, str]) -> bool:
    step = environ.get("SLURM_STEP_ID") or environ.get("SLURM_STEPID") or ""
    return step.isdigit() and int(step) not in _SPECIAL_STEPS


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "").strip()
    return int(text) if text.isdigit() else 0


def affinity() -> frozenset[int]:
    """The cores this process may run on (all of the machine's where the system does not say)."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def threads_per_rank(masks: Sequence[frozenset[int]], me: int) -> int:
    """Threads for rank ``me`` of a host: its cores shared fairly with the ranks whose masks overlap its own.

    >>> threads_per_rank([frozenset({0, 1, 2, 3})] * 2, 0)  # not bound: both may use all four cores
    2
    >>> threads_per_rank([frozenset({0, 1}), frozenset({2, 3})], 0)  # bound to two cores each
    2
    """
    mine = masks[me]
    sharing = sum(1 for mask in masks if mask & mine)
    return max(1, len(mine) // max(1, sharing))


def choose_threads(comm: Communicator, environ: Mapping[str, str] = os.environ) -> Threads:
    """Set the threads of torch and of NumPy's BLAS for this rank and say how many. *Collective*.

    Each rank gets its share of the cores it may run on; all take the smallest share of any rank, so that the same
    arithmetic is done everywhere. When ``OMP_NUM_THREADS`` is set on any rank nothing is changed: a BLAS reads it too.
    """
    import torch

    group = comm.split_shared()
    mine = affinity()
    share = threads_per_rank([frozenset(mask) for mask in group.allgather_objects(sorted(mine))], group.rank)
    set_by_user = float("OMP_NUM_THREADS" in environ)
    smallest, not_by_user = comm.reduce_scalars([share, 1.0 - set_by_user], op="min")
    where = len(mine), group.rank, group.size
    group.free()
    if not not_by_user:
        return Threads(torch.get_num_threads(), "OMP_NUM_THREADS", *where)
    torch.set_num_threads(int(smallest))
    _limit_blas(int(smallest))
    return Threads(int(smallest), "affinity", *where)


def _limit_blas(threads: int) -> None:
    """Fewer threads for the BLAS libraries that are loaded, never more: one may have been given its own number.

    A BLAS takes a thread for every core of a process otherwise, and on several ranks they wait for each other's.
    """
    import threadpoolctl

    blas = [library for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]
    threadpoolctl.threadpool_limits({library["prefix"]: min(threads, library["num_threads"]) for library in blas})
