"""What a run was made with: versions, machine, launch and code, for ``environment.json``."""

from __future__ import annotations

import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import hpcopt

PACKAGES = ("torch", "numpy", "mpi4py", "h5py", "scipy", "pydantic", "cupy-cuda12x", "cupy-cuda13x")
VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "SLURM_JOB_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_NTASKS",
    "SLURM_CPUS_PER_TASK",
    "HPCOPT_DATA",
)


def environment(mpi_library: str | None = None, hosts: Sequence[str] | None = None) -> dict[str, Any]:
    """Describe this process and machine, of rank 0.

    Args:
        mpi_library: what the MPI library says of itself (``MPI.Get_library_version()``).
        hosts: the host of each rank.

    Returns:
        A mapping that JSON can hold. Imports nothing heavy and fails on nothing.
    """
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "directory": os.getcwd(),
        "host": socket.gethostname(),
        "hosts": list(hosts) if hosts is not None else None,
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": platform.platform(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "cpus_allowed": cpus_allowed(),
        "mpi_library": mpi_library.strip("\0 \n") if mpi_library else None,
        "hpcopt": hpcopt.__version__,
        "packages": {name: version for name in PACKAGES if (version := package_version(name))},
        "git": git_state(Path.cwd()),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def package_version(name: str) -> str | None:
    """The installed version of a distribution, without importing it; None when it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.lower().startswith(("model name", "cpu model"))]
    return names[0] if names else platform.machine()


def cpus_allowed() -> int:
    """Number of processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def git_state(directory: Path) -> dict[str, Any] | None:
    """Commit of the repository around ``directory`` and whether its files differ from it; None outside of one."""
    commit = _git(directory, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git(directory, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": None if changes is None else bool(changes)}


def _git(directory: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(directory), "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
