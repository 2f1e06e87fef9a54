"""Newton on a network that is cut over the ranks: full and block-diagonal directions, and early termination.

    OMP_NUM_THREADS=1 mpirun -n 4 python benchmarks/newton/variants.py [--output benchmarks/results/newton-variants.md]
    OMP_NUM_THREADS=1 mpirun -n 6 python benchmarks/newton/variants.py --split 2 1 2 1

With ``--split`` the mapping is the paper's: every layer is on ranks of its own, and each rank has one block of the
matrix; without it, a grid. The problem is that of ``benchmarks/newton/_problem.py``, 40 steps from each start. Nothing
is timed, and phases end in lock-step, so that losses and counts do not depend on the machine, but for rounding. The
full direction is the same on any number of ranks, again but for rounding, and rank 0 finds it alone. "Slowest" adds up
over the steps what the rank with the most iterations made, for which the others wait.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from time import sleep

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, table, write_report
from benchmarks.newton._problem import run
from hpcopt.comm.communicator import Communicator

BLOCK = ["solver.direction=block", "solver.block_solver=cg"]
LAYER = [*BLOCK, "solver.blocks=layer"]
HALF, QUARTER = ([f"parallel.quorum={part}", "parallel.termination=lock_step"] for part in (0.5, 0.25))
VARIANTS: dict[str, list[str]] = {
    "full, without combination": ["solver.combine=false"],
    "full": [],
    "block a rank, without combination": [*BLOCK, "solver.combine=false"],
    "block a rank": BLOCK,
    "block a rank, quorum 0.5": [*BLOCK, *HALF],
    "block a rank, quorum 0.25": [*BLOCK, *QUARTER],
    "block a layer": LAYER,
    "block a layer, quorum 0.5": [*LAYER, *HALF],
}
ON_OWN_RANKS = [
    *("full", "block a rank, without combination", "block a rank"),
    *("block a rank, quorum 0.5", "block a rank, quorum 0.25"),
]
"""Variants with the paper's mapping, in which a rank has one layer."""
HEAD = ["direction", "f", "best test accuracy, %", "after 10 / 20 steps, %", "mean CG", "slowest CG", "median alpha"]


def figures(comm: Communicator, settings: list[str], seed: int, steps: int) -> tuple[float, ...] | None:
    """f, best accuracy, accuracies after 10 and 20 steps, mean and slowest counts, median step; None but on rank 0."""
    found = run(comm, f"run.seed={seed}", f"run.iterations={steps}", *settings)
    if not found.steps:
        return None
    accuracies, counts = found.accuracies, found.counts
    early = [accuracies[min(number, len(accuracies) - 1)] for number in (10, 20)]
    alpha = float(np.median([row["step_size"] for row in found.steps]))
    return found.f, accuracies.max(), *early, counts.mean(), counts.max(axis=1).sum(), alpha


def wait(comm: Communicator) -> None:
    """For all ranks, asleep. *Collective*."""
    arrived = comm.iallreduce(np.zeros(1))
    while not arrived.test():
        sleep(0.02)
    arrived.wait()


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--split", type=int, nargs="+", help="groups of the features and of each layer")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    """Run all variants from all starts. *Collective*."""
    options = arguments()
    mapping = ["parallel.mapping=paper", f"parallel.split={options.split}"] if options.split else []
    comm, rows = Communicator(), []
    alone = comm.split(comm.rank, 0)
    for variant in ON_OWN_RANKS if options.split else VARIANTS:
        settings, found = VARIANTS[variant], []
        for seed in range(options.starts):
            blocks = settings[:1] == BLOCK[:1]
            if blocks or comm.rank == 0:
                given = [*settings, *mapping] if blocks else settings
                found.append(figures(comm if blocks else alone, given, seed, options.steps))
            wait(comm)
        if comm.rank == 0:
            f, best, ten, twenty, mean, slowest, alpha = np.mean([each for each in found if each], axis=0)
            rows.append([variant, f"{f:.4f}", f"{best:.1f}", f"{ten:.1f} / {twenty:.1f}", f"{mean:.1f}"])
            rows[-1] += [f"{slowest:.0f}", f"{alpha:g}"]
            print(*rows[-1], sep="  ", flush=True)
    if options.output and comm.rank == 0:
        report(options, comm.size, rows)


def report(options: argparse.Namespace, ranks: int, rows: list[list[str]]) -> None:
    """Write the table and how it was made."""
    cut = f", the paper's mapping with split {'-'.join(map(str, options.split))}" if options.split else ""
    command = f"OMP_NUM_THREADS=1 mpirun -n {ranks} python benchmarks/newton/variants.py{spelled(options)}"
    lines = [f"Starts: {options.starts}, {options.steps} steps, {ranks} ranks{cut}.", "", *table(HEAD, rows)]
    write_report(options.output, "Newton: block-diagonal directions and early termination", command, lines)


if __name__ == "__main__":
    main()
