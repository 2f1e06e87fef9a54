"""What a slow rank costs Newton with block-diagonal directions, with and without early termination.

    OMP_NUM_THREADS=1 mpirun -n 4 python benchmarks/newton/slow_rank.py [--output FILE.md]

The problem is that of ``benchmarks/newton/_problem.py``. A first run measures an iteration of conjugate gradients; then
rank 1 waits --factor - 1 times as long before each of its own, asleep, as if it were so much slower. Runs take turns.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, table, write_report
from benchmarks.newton._problem import Outcome, run
from hpcopt.comm.communicator import Communicator

BLOCK = ["solver.direction=block", "solver.block_solver=cg"]
SLOW = 1


def main() -> None:
    """Measure an iteration, and then the variants. *Collective*."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--factor", type=float, default=5.0)
    parser.add_argument("--quorum", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    comm, common = Communicator(), [*BLOCK, f"run.iterations={options.steps}"]
    first = run(comm, *common)
    own = float(first.seconds.sum() / first.counts.max(axis=1).sum()) if comm.rank == 0 else 0.0
    own = comm.broadcast_scalars([own])[0]
    slow = [f"debug.slow_rank={SLOW}", f"debug.slow_seconds={(options.factor - 1) * own}"]
    variants = {
        "all ranks alike": [],
        "one slow": slow,
        f"one slow, quorum {options.quorum:g}": [*slow, f"parallel.quorum={options.quorum}"],
    }
    found: dict[str, list[Outcome]] = {name: [] for name in variants}
    for _ in range(options.rounds):
        for name, settings in variants.items():
            found[name].append(run(comm, *common, *settings))
    if comm.rank == 0:
        _report(found, own, comm.size, options)


def _report(found: dict[str, list[Outcome]], own: float, ranks: int, options: argparse.Namespace) -> None:
    """Print and write the table."""
    rows = []
    for name, outcomes in found.items():
        seconds = np.median([np.median(each.seconds) for each in outcomes])
        counts = np.concatenate([each.counts for each in outcomes])
        rest = np.delete(counts, SLOW, axis=1).mean()
        f = np.mean([each.f for each in outcomes])
        rows.append([name, f"{seconds:.3f}", f"{counts[:, SLOW].mean():.1f}", f"{rest:.1f}", f"{f:.3f}"])
        print(*rows[-1], sep="  ", flush=True)
    if options.output:
        head = ["ranks", "seconds a step (median)", f"CG of rank {SLOW}", "CG of the others", "f"]
        about = (
            f"{ranks} ranks on {os.cpu_count()} cores, {options.steps} steps, {options.rounds} rounds. An iteration of "
            f"conjugate gradients takes {1e3 * own:.1f} ms, on the slow rank {options.factor:g} times as long. Load "
            f"average at the end: {os.getloadavg()[0]:.1f}; where it is above the number of ranks, others computed too."
        )
        command = f"OMP_NUM_THREADS=1 mpirun -n {ranks} python benchmarks/newton/slow_rank.py{spelled(options)}"
        write_report(options.output, "Newton: what a slow rank costs", command, [about, "", *table(head, rows)])


if __name__ == "__main__":
    main()
