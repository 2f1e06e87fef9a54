"""Jobs one after another in the same processes, and what their records say: the part of a measurement that is in MPI.

    mpirun -n R python benchmarks/scaling/_jobs.py PLAN.json TOLD.json

The plan holds settings by name, which rank 0 reads; it writes what ``hpcopt inspect --json`` says of each run, the
hosts of the ranks, and the time of an allreduce.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hpcopt.analysis.history import open_run
from hpcopt.analysis.summary import summary
from hpcopt.comm.communicator import Communicator
from hpcopt.comm.launch import choose_threads
from hpcopt.config import parse_job
from hpcopt.train.job import PreparedJob

JOB = """
[run]
device = "cpu"
[data]
source = "mnist-5k"
[model]
name = "mlp"
widths = [128]
"""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_mpi_yield_when_idle": "true",
}
"""One thread a rank on any number of ranks; Open MPI may put more of them on a machine than it has cores."""
SIZES = (8, 1 << 18)
"""Bytes of the allreduces that show what the network does."""


def ran(
    launcher: Sequence[str], plan: Mapping[str, Sequence[str]], environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What came of the plan's jobs, under a launcher such as ``mpirun -n 2``.

    Raises:
        SystemExit: a job failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, told = Path(folder) / "plan.json", Path(folder) / "told.json"
        asked.write_text(json.dumps(plan), encoding="utf-8")
        command = [*launcher, sys.executable, str(Path(__file__).resolve()), str(asked), str(told)]
        done = subprocess.run(command, env=ENVIRONMENT | os.environ | dict(environment or {}), check=False)
        if done.returncode or not told.exists():
            raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}")
        found: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
    return found


def main(plan: Path, told: Path) -> None:
    """Run the jobs and write what they came to. *Collective*."""
    comm = Communicator()
    choose_threads(comm)
    jobs: dict[str, list[str]] = comm.broadcast_object(json.loads(plan.read_text()) if comm.rank == 0 else None)
    found: dict[str, Any] = {"hosts": comm.allgather_objects(comm.host), "allreduce": _allreduce_seconds(comm)}
    if jobs:
        _trained(comm, told.parent / "warm", [*next(iter(jobs.values())), "run.iterations=2"])
    found["runs"] = {name: _trained(comm, told.parent / name, settings) for name, settings in jobs.items()}
    if comm.rank == 0:
        told.write_text(json.dumps(found), encoding="utf-8")


def _trained(comm: Communicator, path: Path, settings: list[str]) -> dict[str, Any] | None:
    """What inspect says of a run, on rank 0. *Collective*."""
    PreparedJob(parse_job(JOB, settings), comm).run(path, fresh=True)
    return summary(open_run(path)) if comm.rank == 0 else None


def _allreduce_seconds(comm: Communicator) -> dict[str, float]:
    """Median time of an allreduce on the slowest rank, by its bytes. *Collective*."""
    found = {}
    for size in SIZES:
        buffer, times = np.zeros(size // 8), []
        for _ in range(6):
            comm.barrier()
            start = perf_counter()
            comm.allreduce(buffer)
            times.append(comm.reduce_scalars([perf_counter() - start], "max")[0])
        found[str(size)] = median(times[1:])
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
