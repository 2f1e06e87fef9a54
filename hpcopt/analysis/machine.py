"""Probes of this process's machine for ``hpcopt doctor``. Each returns plain facts and fails on nothing."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcopt.errors import UsageError
from hpcopt.train.run.environment import PACKAGES, cpu_model, package_version

LAUNCH_PREFIXES = ("OMPI_COMM_WORLD_", "PMI_", "PMIX_RANK", "PMIX_NAMESPACE", "MV2_COMM_WORLD_", "HYDI_", "MPIEXEC_")
LAUNCH_VARIABLES = (
    "SLURM_JOB_ID",
    "SLURMD_NODENAME",
    "SLURM_STEP_ID",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "SLURM_NNODES",
    "SLURM_CPUS_PER_TASK",
    "SLURM_MPI_TYPE",
    "PBS_JOBID",
    "LSB_JOBID",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "HDF5_USE_FILE_LOCKING",
    "HPCOPT_DATA",
)
WRITE_BYTES = 64 << 20
WRITE_SECONDS = 1.5


def process_facts() -> dict[str, Any]:
    """What may differ from rank to rank: host, cores, devices, versions, launch variables."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "cores": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(_cores())),
        "cores_of_host": _cores(),
        "cpu": cpu_model(),
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "devices": devices(),
        "sweeps": sweeps(),
        "variables": launch_variables(os.environ),
    }


def devices() -> dict[str, Any]:
    """The accelerators torch can use: names and UUIDs, and for what CUDA or ROCm it was built."""
    try:
        import torch

        from hpcopt.train.devices import gpu_facts

        found = [gpu_facts(index) for index in range(torch.cuda.device_count())]
    except Exception as error:  # a broken installation fails in many ways, and to say so is the purpose
        return {"error": f"{type(error).__name__}: {error}", "names": [], "uuids": [], "built_for": None}
    built_for = torch.version.cuda and f"CUDA {torch.version.cuda}"
    if not built_for and getattr(torch.version, "hip", None):
        built_for = f"ROCm {torch.version.hip}"
    names, uuids = ([gpu[key] for gpu in found] for key in ("name", "uuid"))
    return {"error": None, "names": names, "uuids": uuids, "built_for": built_for}


def sweeps() -> str:
    """Whether the sweeps over long vectors are "compiled"; else why torch makes them, or nothing without torch."""
    try:
        from hpcopt.kernels.compiled import compiled_sweeps
    except Exception:  # told with the devices
        return ""
    found = compiled_sweeps()
    return found if isinstance(found, str) else "compiled"


def launch_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that launchers, batch systems and libraries of threads set, cut to 60 characters."""
    known = [name for name in environ if name.startswith(LAUNCH_PREFIXES) or name in LAUNCH_VARIABLES]
    return {name: environ[name][:60] for name in sorted(known)}


def hdf5_facts(directory: Path) -> dict[str, Any]:
    """The HDF5 build, and whether a record can be written and read at the same time in ``directory``."""
    try:
        import h5py
    except Exception as error:  # as for torch
        return {"error": f"{type(error).__name__}: {error}", "version": None, "parallel": False, "swmr": None}
    return {
        "error": None,
        "version": h5py.version.hdf5_version,
        "parallel": bool(h5py.get_config().mpi),
        "swmr": _try_record(directory),
    }


def disk_facts(directory: Path) -> dict[str, Any]:
    """File system, free bytes and measured write rate (bytes a second, to the device) of ``directory``."""
    existing = existing_folder(directory)
    facts: dict[str, Any] = {"path": str(existing), "file_system": file_system(existing), "free": 0, "rate": None}
    try:
        facts["free"] = shutil.disk_usage(existing).free
        facts["rate"] = _write_rate(existing, min(WRITE_BYTES, facts["free"] // 4))
        facts["error"] = None
    except OSError as error:
        facts["error"] = error.strerror or str(error)
    return facts


def existing_folder(directory: Path) -> Path:
    """The directory itself, or the nearest above it that is there, absolute."""
    existing = directory.absolute()
    while not existing.is_dir() and existing != existing.parent:
        existing = existing.parent
    return existing


def file_system(path: Path) -> str:
    """The type of the file system a path is on, empty where the system does not say."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return ""
    real = os.path.realpath(path)
    holding = [
        (len(point), kind)
        for _, point, kind, *_ in mounts
        if point == "/" or real == point or real.startswith(point.rstrip("/") + "/")
    ]
    return max(holding, default=(0, ""))[1]


def _cores() -> int:
    return os.cpu_count() or 1


def _try_record(directory: Path) -> str:
    """An empty string when writing and reading at once works, else why not."""
    from hpcopt.train.run.record import Recorder
    from hpcopt.train.run.record_reader import read_tables

    try:
        with tempfile.TemporaryDirectory(prefix=".hpcopt-doctor-", dir=directory) as made:
            recorder = Recorder(Path(made), ranks=1)
            try:
                recorder.rank_times(1, [0.0], [0.0], [0.0])
                rows = read_tables(recorder.path)["ranks"].size
            finally:
                recorder.close()
            return "" if rows == 1 else "a reader does not see what was written"
    except (OSError, UsageError) as error:
        return str(error)


def _write_rate(directory: Path, most: int) -> float:
    block = os.urandom(1 << 20)
    written, start = 0, time.perf_counter()
    with tempfile.NamedTemporaryFile(prefix=".hpcopt-doctor-", dir=directory) as file:
        while written < max(most, len(block)) and time.perf_counter() - start < WRITE_SECONDS:
            written += file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return written / (time.perf_counter() - start)
