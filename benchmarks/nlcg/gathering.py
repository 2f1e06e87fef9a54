"""A step of the published NLCG with w in slices: w gathered in one call before the evaluation, or by parts beside it.

    mpirun -n 2 python benchmarks/nlcg/gathering.py
    python benchmarks/scaling/hosts.py --rates 1000 --delay 0 --run "python benchmarks/nlcg/gathering.py --link 1000"

The second command puts the ranks on two hosts, network namespaces of one machine, whose links send so many megabits a
second; with --output FILE.md behind --link it writes a report. A fully connected network of equal layers; every rank
evaluates as many samples. Steps of the variants go in turns, so that a noisy machine disturbs them alike; figures are
medians over steps of the slowest rank's. "Waited" is the time in which a rank could do nothing else, by the ledger.

A second table has the end of a step: products are reduced, then direction and w move in one sweep; and the same with
w's first part, -t z, beside the reduction, after which direction and w have the rest of the way.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, table, write_report
from hpcopt.comm.communicator import Communicator
from hpcopt.comm.mpi_library import library_name
from hpcopt.kernels.choice import sweeps_on
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.sharded.gathering import PART_BYTES
from hpcopt.objective.sharded.objective import ShardedStateObjective
from hpcopt.solvers.registry import make_solver

CLASSES, LABELS = 10, ("variables", "gradient")
PRODUCTS, BETA, RATE = 6, 0.5, 1e-3
"""Of the end of a step."""


class Variant:
    """Steps of a problem whose w is gathered in parts of so many bytes at least. *Collective*."""

    def __init__(self, comm: Communicator, options: argparse.Namespace, part_bytes: int) -> None:
        torch.manual_seed(0)
        layers: list[torch.nn.Module] = []
        for _ in range(options.layers):
            layers += [torch.nn.Linear(options.width, options.width), torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers, torch.nn.Linear(options.width, CLASSES))
        generator = torch.Generator().manual_seed(comm.rank)
        inputs = torch.randn(options.samples, options.width, generator=generator)
        targets = torch.randint(CLASSES, (options.samples,), generator=generator)
        whole = DataParallelObjective(model, "cross_entropy", inputs, targets, comm)
        self.comm, self.objective = comm, ShardedStateObjective(whole, part_bytes=part_bytes)
        self.solver = make_solver("nlcg", {"preset": "paper"}, 100.0)
        self.state = self.solver.init(self.objective)
        self.loss = 0.0

    def step(self) -> list[float]:
        """Seconds of a step, and of these the waited ones; the slowest rank's. *Collective*."""
        self.comm.barrier()
        before, waited, start = self.comm.ledger.snapshot(), self.comm.ledger.seconds_waited, perf_counter()
        self.state, report = self.solver.step(self.objective, self.state, self.objective.full_batch)
        seconds, waited = perf_counter() - start, self.comm.ledger.seconds_waited - waited
        rows = {row.label: row.seconds_waited for row in self.comm.ledger.rows(before)}
        self.loss = report.loss
        return self.comm.reduce_scalars([seconds, *(rows[label] for label in LABELS), waited], "max")


def steps(comm: Communicator, options: argparse.Namespace) -> tuple[list[list[str]], list[float], int]:
    """A row for each variant, their losses, and the length of a slice. *Collective*."""
    sizes = {"one call before": sys.maxsize} | {f"parts of {size >> 20} MiB beside": size for size in options.parts}
    variants = {name: Variant(comm, options, size) for name, size in sizes.items()}
    times: dict[str, list[list[float]]] = {name: [] for name in variants}
    for number in range(options.steps + 2):
        for name, variant in variants.items():
            found = variant.step()
            if number > 1:  # the first ones find memory, and rehearse
                times[name].append(found)
    rows = [
        [name, *(f"{1e3 * median(each):.0f}" for each in zip(*found, strict=True))] for name, found in times.items()
    ]
    return rows, [variant.loss for variant in variants.values()], next(iter(variants.values())).objective.size


def ends(comm: Communicator, numbers: int, repeats: int) -> list[list[str]]:
    """Milliseconds of both ends of a step with a slice of so many numbers, and of the reduction. *Collective*."""
    z, d, w = (torch.randn(numbers) for _ in range(3))
    move = sweeps_on(w).move

    def together() -> None:
        """The reduction, then one sweep."""
        comm.reduce_scalars([1.0] * PRODUCTS)
        move(z, d, w, None, beta=BETA, undo=0.0, rate=RATE, leaves=0.0)

    def split() -> None:
        """W's first part beside the reduction."""
        request = comm.iallreduce(torch.ones(PRODUCTS, dtype=torch.float64))
        w.add_(z, alpha=-RATE)
        request.wait()
        move(z, d, w, None, beta=BETA, undo=-RATE * BETA, rate=0.0, leaves=0.0)

    calls: dict[str, Callable[[], object]] = {
        "products, then d and w": together,
        "products beside w - t z, then d and w": split,
        "products alone": lambda: comm.reduce_scalars([1.0] * PRODUCTS),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            comm.barrier()
            start = perf_counter()
            call()
            times[name].append(comm.reduce_scalars([perf_counter() - start], "max")[0])
    return [[name, f"{1e3 * median(found[1:]):.2f}"] for name, found in times.items()]


def lines(comm: Communicator, options: argparse.Namespace) -> list[str]:
    """What is printed and written. *Collective*."""
    rows, losses, numbers = steps(comm, options)
    count = (options.layers * options.width + CLASSES) * (options.width + 1)
    where = f"{comm.size} ranks on {len(set(comm.allgather_objects(comm.host)))} host(s)"
    link = f", links of {options.link:g} Mbit/s" if options.link else ""
    return [
        f"{options.layers} layers of {options.width} units, {count:,} numbers of float32 ({count >> 18} MiB); "
        f"{options.samples} samples a rank, {where}{link}, {library_name()}; {options.steps} steps of each. "
        f"Losses {'equal to the last bit' if len(set(losses)) == 1 else 'DIFFERENT'}: {losses[0]!r}.",
        "",
        *table(["w is gathered in", "ms a step", *(f"{label}: waited" for label in LABELS), "all: waited"], rows),
        "",
        f"The end of a step with a slice of {numbers:,} numbers:",
        "",
        *table(["", "ms"], ends(comm, numbers, 4 * options.steps)),
        "",
        f"Load average at the end: {os.getloadavg()[0]:.1f}.",
    ]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=256, help="a rank")
    parser.add_argument("--parts", type=int, nargs="+", default=[PART_BYTES], help="bytes")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--link", type=float, default=0.0, help="Mbit/s of the hosts' links, for the report")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    comm = Communicator()
    text = lines(comm, options)
    if comm.rank:
        return
    print("\n".join(text), flush=True)
    if options.output:
        own = f"python benchmarks/nlcg/gathering.py{spelled(options)}"
        hosts = f'python benchmarks/scaling/hosts.py --rates {options.link:g} --delay 0 --run "{own}"'
        command = hosts if options.link else f"mpirun -n {comm.size} {own}"
        write_report(options.output, "Gathering w beside the evaluation", command, text)


if __name__ == "__main__":
    main()
