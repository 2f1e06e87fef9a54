"""Memory of a rank where a network is cut over a grid of ranks: it must fall as 1 / R, since no rank holds all of w.

    OMP_NUM_THREADS=1 python benchmarks/newton/memory.py [--ranks 1 2 4] [--output benchmarks/results/newton-memory.md]

3000-4000-2000-10 has 20 million variables. For each number of ranks R the script starts itself under mpirun, on the
squarest grid. Every rank makes the objective, evaluates value and gradient on all instances, linearises the network on
a subset of them, and makes one Gauss-Newton product, all by the factors of the Jacobian. Peaks are those of the
resident memory in each of these steps, over what the process held before: Python, torch, MPI, and a small network on
which everything ran once. Linux only, whose kernel keeps the peak and lets a process start it anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks._report import spelled, table, write_report
from hpcopt.comm.communicator import Communicator
from hpcopt.layout.network import GridLayout, network_grid
from hpcopt.objective.network.objective import NetworkObjective

STEPS = ("objective", "value and gradient", "linearisation", "product")
AIM = 1.15
"""Largest R times the peak of R ranks over the peak of one that is wanted."""
MB = 1e6


class Measured(NamedTuple):
    """One number of ranks, the largest figures of all ranks in bytes.

    Attributes:
        ranks: R.
        grid: its rows and columns.
        variables: those of the rank that has most.
        before: resident memory before the objective was made.
        peaks: in each of ``STEPS``, over what was resident before.
        shared: resident memory that MPI shares with other processes, at the end.
    """

    ranks: int
    grid: tuple[int, int]
    variables: int
    before: float
    peaks: tuple[float, ...]
    shared: float

    @property
    def peak(self) -> float:
        """Of all steps."""
        return max(self.peaks)


class Peak:
    """Peak of this process's resident memory, in bytes over that at a first moment."""

    def __init__(self) -> None:
        self.before = resident("VmRSS")

    def of(self, step: Callable[[], Any]) -> tuple[Any, float]:
        """What a step returns, and the peak in it."""
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew at what is resident now
        result = step()
        return result, resident("VmHWM") - self.before


def resident(kind: str) -> float:
    """Bytes of a line of /proc/self/status, such as VmRSS."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024.0 * next(float(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def objective(sizes: Sequence[int], samples: int, comm: Communicator) -> NetworkObjective:
    """A network on the squarest grid, with this rank's columns of random samples. *Collective*."""
    grid = network_grid(sizes, comm.size)
    features = GridLayout(sizes, grid).features(comm.rank)
    inputs = torch.rand(samples, features.count, generator=torch.Generator().manual_seed(comm.rank))
    labels = torch.randint(sizes[-1], (samples,), generator=torch.Generator().manual_seed(0))
    return NetworkObjective(sizes, "tanh", "cross_entropy", inputs, labels, comm, [grid.rows, grid.columns])


def peaks(sizes: Sequence[int], samples: int, subset: int, comm: Communicator) -> tuple[Peak, list[float]]:
    """The peaks of ``STEPS`` on this rank. *Collective*."""
    peak = Peak()
    problem, first = peak.of(lambda: objective(sizes, samples, comm))
    w = problem.initial_vector()
    problem.model.bind(w)  # as a run does: the vector of the first point is then the only one
    (_, gradient), second = peak.of(lambda: problem.value_and_gradient(w, problem.full_batch))
    few = problem.subset(problem.full_batch, subset, 0)
    linear, third = peak.of(lambda: problem.linearize(w, few))
    _, fourth = peak.of(lambda: linear.gauss_newton(gradient))
    problem.free()
    return peak, [first, second, third, fourth]


def measure(chosen: argparse.Namespace) -> None:
    """What every rank does under mpirun; rank 0 prints ``Measured`` as JSON. *Collective*."""
    torch.set_num_threads(1)
    comm = Communicator()
    for _ in range(2):
        peaks([64, 64, 64, 10], 32, 16, comm)
    before, found = peaks(chosen.sizes, chosen.samples[0], chosen.subset[0], comm)
    grid = network_grid(chosen.sizes, comm.size)
    own = GridLayout(chosen.sizes, grid).size(comm.rank)
    most = comm.reduce_scalars([own, before.before, resident("RssShmem"), *found], op="max")
    if comm.rank == 0:
        print(json.dumps([comm.size, list(grid), int(most[0]), most[1], most[3:], most[2]]))


def started(ranks: int, sizes: Sequence[int], samples: int, subset: int) -> Measured:
    """The figures of a job of so many ranks."""
    own = ["--measure", "--samples", str(samples), "--subset", str(subset), "--sizes", *map(str, sizes)]
    command = ["mpirun", "-n", str(ranks), sys.executable, __file__, *own]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return Measured(told[0], tuple(told[1]), told[2], told[3], tuple(told[4]), told[5])


def share(found: Measured, one: Measured) -> float:
    """R times the peak of R ranks, over that of one: 1 where memory falls as 1 / R."""
    return found.ranks / one.ranks * found.peak / one.peak


def row(found: Measured, one: Measured) -> list[str]:
    """One line of the table."""
    vector = 4.0 * found.variables
    figures = [vector, found.before, found.shared, *found.peaks, found.peak]
    cells = [f"{figure / MB:.0f}" for figure in figures]
    head = [str(found.ranks), f"{found.grid[0]} x {found.grid[1]}"]
    return [*head, *cells, f"{found.peak / vector:.2f}", f"{share(found, one):.2f}"]


def verdict(found: Sequence[Measured]) -> str:
    """Whether the memory of one number of instances falls as 1 / R."""
    worst = max(share(each, found[0]) for each in found)
    met = "met" if worst <= AIM else "NOT met"
    return f"R times the peak is at most {worst:.2f} of the first row's (aim: at most {AIM}): {met}."


def report(found: Sequence[Sequence[Measured]], chosen: argparse.Namespace) -> list[str]:
    """A table for each number of instances, and whether the aim is met."""
    variables = sum((u + 1) * v for u, v in pairwise(chosen.sizes))
    head = ["ranks", "grid", "one vector", "before", "shared by MPI", *STEPS, "peak", "in vectors", "R x peak"]
    lines = [
        f"Network {'-'.join(map(str, chosen.sizes))}, {variables:,} variables in float32, tanh, cross-entropy. MB (10^6"
        " bytes), of the rank that needs most. One vector: the variables of a rank. Peaks are over what was resident"
        " before. R x peak: over that of the first row, 1 where memory falls as 1 / R.",
        "",
        "At the end a rank holds four vectors: the point, its gradient, the copy of the point that belongs to the"
        " linearisation, and the product. Vectors fall as 1 / R. Features, activations and factors of the Jacobian are"
        " cut over the rows or over the columns of the grid only, so that they fall more slowly, and count where there"
        " are many instances beside few variables. So does what the C library keeps of arrays that were freed, which"
        " differs from run to run; with MALLOC_MMAP_THRESHOLD_=262144 in the environment it gives them back.",
    ]
    for samples, subset, series in zip(chosen.samples, chosen.subset, found, strict=True):
        lines += ["", f"{samples} instances, {subset} of them in the linearisation:", ""]
        lines += [*table(head, [row(each, series[0]) for each in series]), "", verdict(series)]
    return lines


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[3000, 4000, 2000, 10])
    parser.add_argument("--samples", type=int, nargs="+", default=[64, 512], help="one table for each")
    parser.add_argument("--subset", type=int, nargs="+", default=[8, 64], help="instances of each in the linearisation")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure with every number of ranks and report."""
    chosen = options()
    if chosen.measure:
        measure(chosen)
        return
    cases = zip(chosen.samples, chosen.subset, strict=True)
    lines = report([[started(ranks, chosen.sizes, *case) for ranks in chosen.ranks] for case in cases], chosen)
    print("\n".join(lines))
    if chosen.output:
        command = f"OMP_NUM_THREADS=1 python benchmarks/newton/memory.py{spelled(chosen)}"
        write_report(chosen.output, "Memory of a rank, network on a grid", command, lines, max(chosen.ranks))


if __name__ == "__main__":
    main()
