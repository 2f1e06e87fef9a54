"""A step of the published NLCG with w in slices: w gathered in one call before the evaluation, or by parts beside it.

    mpirun -n 2 python benchmarks/nlcg/gathering.py [--output benchmarks/results/nlcg-gathering.md]
    python benchmarks/scaling/hosts.py --rates 1000 --delay 0 --run "python benchmarks/nlcg/gathering.py"

The second command puts the ranks on two hosts, network namespaces of one machine, whose links send so many megabits a
second. A fully connected network of equal layers; every rank evaluates as many samples. Steps of the variants go in
turns, so that a noisy machine disturbs them alike; figures are medians over steps of the slowest rank's. "Waited" is
the time of the ledger in which a rank could do nothing else: of the gathering, of the gradient's scattering, of all.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import table, write_report
from hpcopt.comm.communicator import Communicator
from hpcopt.comm.mpi_library import library_name
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.gathering import PART_BYTES
from hpcopt.objective.sharded import ShardedStateObjective
from hpcopt.solvers.registry import make_solver

CLASSES, LABELS = 10, ("variables", "gradient")


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


def measured(comm: Communicator, options: argparse.Namespace) -> tuple[list[list[str]], list[float]]:
    """A row for each variant, and their losses. *Collective*."""
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
    return rows, [variant.loss for variant in variants.values()]


def lines(comm: Communicator, options: argparse.Namespace) -> list[str]:
    """What is printed and written. *Collective*."""
    rows, losses = measured(comm, options)
    count = options.layers * options.width * (options.width + 1) + CLASSES * (options.width + 1)
    hosts = len(set(comm.allgather_objects(comm.host)))
    return [
        f"{options.layers} layers of {options.width} units, {count:,} numbers of float32 ({count >> 18} MiB); "
        f"{options.samples} samples a rank, {comm.size} ranks on {hosts} host(s), {library_name()}; "
        f"{options.steps} steps of each. Load average at the end: {os.getloadavg()[0]:.1f}.",
        *([] if not options.about else [options.about]),
        "",
        *table(["w is gathered in", "ms a step", *(f"{label}: waited" for label in LABELS), "all: waited"], rows),
        "",
        "The losses of all variants are equal to the last bit."
        if len(set(losses)) == 1
        else f"DIFFERENT LOSSES: {losses}",
    ]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=256, help="a rank")
    parser.add_argument("--parts", type=int, nargs="+", default=[PART_BYTES], help="bytes")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--about", default="", help="a sentence on the network")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    comm = Communicator()
    text = lines(comm, options)
    if comm.rank == 0:
        print("\n".join(text), flush=True)
        if options.output:
            write_report(options.output, "Gathering w beside the evaluation", "mpirun -n 2 " + " ".join(sys.argv), text)


if __name__ == "__main__":
    main()
