"""One step of slimTrain and one of Adam on the same job, one rank.

    python benchmarks/slimtrain/step.py jobs/cdr-slimtrain.toml [--set data.root=DIR] [--output slimtrain-step-cdr.md]

Steps go in turns, block by block, so that a noisy machine disturbs both alike; the end of an epoch, at which slimTrain
solves for the last layer on all samples, is timed apart. The time that the process itself computed is told beside that
of the clock: others on the machine leave it almost as it is.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, table, write_report
from hpcopt.comm.communicator import Communicator
from hpcopt.config import parse_job, read_job
from hpcopt.train.job import PreparedJob

METHODS = {
    "Adam": ["solver.name=adam"],
    "slimTrain": ["solver.name=slimtrain"],
    "slimTrain, memory = 10": ["solver.name=slimtrain", "solver.memory=10"],
    "slimTrain, end of an epoch": ["solver.name=slimtrain"],
}


def step_of(name: str, args: argparse.Namespace) -> Callable[[], object]:
    """One step of a method, with a batch of its own at each call."""
    prepared = PreparedJob(parse_job(read_job(args.job), [*args.set, *METHODS[name]]), Communicator())
    solver, batches = prepared.solver, prepared.sampler.begin()
    state, ends = solver.init(prepared.objective), name.endswith("end of an epoch")

    def step() -> object:
        return solver.step(prepared.objective, state, replace(batches.next(), ends_epoch=ends))

    return step


class Times(NamedTuple):
    """Mean seconds of a step, by the clock and of the process, for each block."""

    clock: list[float]
    process: list[float]


def measured(steps: dict[str, Callable[[], object]], blocks: int, length: int) -> dict[str, Times]:
    """The times of each method, the methods in turn; a block before them warms up."""
    times = {name: Times([], []) for name in steps}
    for block in range(blocks + 1):
        for name, step in steps.items():
            starts = time.perf_counter(), time.process_time()
            for _ in range(length):
                step()
            ends = time.perf_counter(), time.process_time()
            if block:
                for found, start, end in zip(times[name], starts, ends, strict=True):
                    found.append((end - start) / length)
    return times


def ratio(ours: list[float], adam: list[float]) -> str:
    """The median of the blocks' ratios."""
    return f"{median(own / other for own, other in zip(ours, adam, strict=True)):.3f}"


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--length", type=int, default=25, help="steps a block")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    times = measured({name: step_of(name, args) for name in METHODS}, args.blocks, args.length)
    rows = []
    for name, own in times.items():
        ratios = [ratio(*pair) for pair in zip(own, times["Adam"], strict=True)]
        rows.append([name, *(f"{1e3 * f(own.clock):.3f}" for f in (median, min, max)), *ratios])
    lines = [
        f"{args.blocks} blocks of {args.length} steps.",
        "",
        *table(["step of", "median ms", "min", "max", "over Adam, median of blocks", "by time of the process"], rows),
    ]
    print("\n".join(lines))
    if args.output:
        command = f"python benchmarks/slimtrain/step.py {args.job}{spelled(args, 'job')}"
        write_report(args.output, f"One step of slimTrain and of Adam: {args.job.stem}", command, lines, ranks=1)


if __name__ == "__main__":
    main()
