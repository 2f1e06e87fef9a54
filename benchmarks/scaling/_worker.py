"""Jobs one after another in the same processes, and what their records say.

    mpirun -n R python benchmarks/scaling/_worker.py PLAN.json TOLD.json

The plan holds settings by name, which rank 0 reads; it writes what ``hpcopt inspect --json`` says of each run, with
seconds and calls of an iteration behind the first ones as "middle", the MPI library, the hosts of the ranks, and the
time of an allreduce.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.scaling._jobs import JOB
from hpcopt.analysis.history import open_run
from hpcopt.analysis.summary import summary
from hpcopt.comm.communicator import Communicator
from hpcopt.comm.launch import choose_threads
from hpcopt.comm.mpi_library import library_name
from hpcopt.config import parse_job
from hpcopt.train.job import PreparedJob

SIZES = (8, 1 << 18)
"""Bytes of the allreduces that show what the network does."""

FIRST = 5
"""Iterations in which memory is found and methods begin, before those that are the middle of a run."""


def main(plan: Path, told: Path) -> None:
    """Run the jobs and write what they came to. *Collective*."""
    comm = Communicator()
    choose_threads(comm)
    jobs: dict[str, list[str]] = comm.broadcast_object(json.loads(plan.read_text()) if comm.rank == 0 else None)
    found: dict[str, Any] = {"library": library_name(), "hosts": comm.allgather_objects(comm.host)}
    found["allreduce"] = _allreduce_seconds(comm)
    if jobs:
        _trained(comm, told.parent / "warm", [*next(iter(jobs.values())), "run.iterations=2"])
    found["runs"] = {name: _trained(comm, told.parent / name, settings) for name, settings in jobs.items()}
    if comm.rank == 0:
        told.write_text(json.dumps(found), encoding="utf-8")


def _trained(comm: Communicator, path: Path, settings: list[str]) -> dict[str, Any] | None:
    """What inspect says of a run, on rank 0. *Collective*."""
    PreparedJob(parse_job(JOB, settings), comm).run(path, fresh=True)
    if comm.rank != 0:
        return None
    run = open_run(path)
    first, last = run.iterations[min(FIRST, run.iterations.size) - 1], run.iterations[-1]
    steps = max(1, int(last["iteration"] - first["iteration"]))
    middle = {name: float(last[name] - first[name]) / steps for name in ("seconds", "calls")}
    return summary(run) | {"middle": middle}


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
