"""What Communicator.allreduce adds to a bare mpi4py Allreduce, from 16 bytes to 16 MB.

    mpirun -n 2 python benchmarks/comm/allreduce.py --output benchmarks/results/comm-allreduce.md

Both sum the same float32 memory in place. They take turns in short rounds, so that whatever else the machine does
meets both; a figure is the median over the rounds of the time of one call, on the slowest rank. The last column takes
the fastest tenth of the rounds instead, which a busy machine disturbs less. About half a minute.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks._report import spelled, table, write_report
from hpcopt.comm.communicator import Communicator

SIZES = (16, 1024, 65536, 2**20, 4 * 2**20, 16 * 2**20)
LIMIT_RATIO, LIMIT_EXTRA = 1.05, 10e-6


class Figure(NamedTuple):
    """Seconds a call for one size: medians, the median ratio, and the ratio of the fastest tenths of the rounds."""

    nbytes: int
    raw: float
    ours: float
    ratio: float
    undisturbed: float

    @property
    def extra(self) -> float:
        """Seconds a call that Communicator adds."""
        return self.ours - self.raw


def seconds_per_call(comm: Communicator, call: Callable[[], object], repeats: int) -> float:
    """Time of one call on the slowest rank. *Collective*."""
    comm.mpi.Barrier()
    start = perf_counter()
    for _ in range(repeats):
        call()
    slowest = comm.reduce_scalars([perf_counter() - start], "max")[0]
    return slowest / repeats


def measure(comm: Communicator, nbytes: int, rounds: int) -> Figure:
    """Compare both calls on ``nbytes`` bytes. *Collective*."""
    tensor = torch.zeros(nbytes // 4)
    array = tensor.numpy()
    raw = comm.mpi.Allreduce
    repeats = max(4, min(200, 2**20 // nbytes))
    calls = [lambda: raw(MPI.IN_PLACE, array, MPI.SUM), lambda: comm.allreduce(tensor)]
    times: list[list[float]] = [[], []]
    for number in range(rounds + 2):
        for which in (0, 1) if number % 2 else (1, 0):
            seconds = seconds_per_call(comm, calls[which], repeats)
            if number >= 2:  # the first rounds warm up
                times[which].append(seconds)
    ratios = [ours / bare for bare, ours in zip(*times, strict=True)]
    return Figure(nbytes, median(times[0]), median(times[1]), median(ratios), _fast(times[1]) / _fast(times[0]))


def _fast(times: list[float]) -> float:
    return sorted(times)[len(times) // 10]


def size_name(nbytes: int) -> str:
    """16 B, 64 KB, 4 MB."""
    for unit in ("B", "KB", "MB"):
        if nbytes < 1024 or unit == "MB":
            return f"{nbytes} {unit}"
        nbytes //= 1024
    raise AssertionError


def verdicts(figures: list[Figure]) -> list[str]:
    """One sentence a target."""
    large = next(figure for figure in figures if figure.nbytes == 4 * 2**20)
    small = figures[0]
    return [
        f"- at 4 MB Communicator takes {large.ratio:.3f} of bare mpi4py (median of the rounds' ratios; target: at most "
        f"{LIMIT_RATIO}): {'met' if large.ratio <= LIMIT_RATIO else 'NOT met'}",
        f"- at 16 bytes it adds {small.extra * 1e6:.2f} microseconds (target: at most {LIMIT_EXTRA * 1e6:.0f}): "
        f"{'met' if small.extra <= LIMIT_EXTRA else 'NOT met'}",
    ]


def main() -> None:
    """Measure, print the table on rank 0, and write it where ``--output`` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=201, help="rounds a size (default %(default)s)")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    comm = Communicator()
    figures = [measure(comm, nbytes, options.rounds) for nbytes in SIZES]
    if comm.rank == 0:
        head = ("buffer", "mpi4py (us)", "Communicator (us)", "added (us)", "ratio", "ratio of fastest tenths")
        rows = [
            (
                size_name(f.nbytes),
                f"{f.raw * 1e6:.2f}",
                f"{f.ours * 1e6:.2f}",
                f"{f.extra * 1e6:.2f}",
                f"{f.ratio:.3f}",
                f"{f.undisturbed:.3f}",
            )
            for f in figures
        ]
        lines = [*table(head, rows), "", *verdicts(figures)]
        print("\n".join(lines))
        if options.output:
            command = f"mpirun -n {comm.size} python benchmarks/comm/allreduce.py{spelled(options)}"
            write_report(options.output, "Allreduce through Communicator beside bare mpi4py", command, lines)


if __name__ == "__main__":
    main()
