"""A gradient, and the figures of a whole set, by how many samples the model is given at a time.

    python benchmarks/profile/pieces.py jobs/cifar10-cnn-nlcg.toml --set data.root=DIR [--pieces 32 128 1024]

Past the point where matrix products get faster, the activations of larger pieces leave the caches of a core. Pieces are
those of ``loss.micro_batch``; they go in turns, so that a noisy machine disturbs all alike. Figures of sets, without
derivatives, take at most as many samples at a time as ``hpcopt.objective.figures`` says; here that limit is lifted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, table, write_report
from hpcopt.comm.communicator import Communicator
from hpcopt.config import parse_job, read_job
from hpcopt.objective import figures
from hpcopt.train.job import PreparedJob


def evaluations(size: int, args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """What is timed with pieces of a size: the gradient of a batch, and figures of the training set."""
    settings = [*args.set, f"loss.micro_batch={size}", "solver.name=adam"]
    prepared = PreparedJob(parse_job(read_job(args.job), settings), Communicator())
    objective, batch = prepared.objective, prepared.sampler.begin().next()
    w = objective.initial_vector()
    return {
        "gradient": lambda: objective.value_and_gradient(w, batch),
        "figures": lambda: objective.evaluate(w, None),
    }


def seconds(called: Callable[[], object]) -> float:
    """How long a call takes, without the limit on the pieces of figures."""
    with mock.patch.object(figures, "ON_PROCESSOR", sys.maxsize):
        start = time.perf_counter()
        called()
        return time.perf_counter() - start


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--pieces", type=int, nargs="+", default=[16, 32, 64, 128, 256, 512, 1024, 4096])
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    by_size = {size: evaluations(size, args) for size in args.pieces}
    times: dict[tuple[int, str], list[float]] = {(size, kind): [] for size in by_size for kind in by_size[size]}
    for block in range(args.blocks + 1):
        for size, kind in times:
            found = seconds(by_size[size][kind])
            if block:  # the first one warms up
                times[size, kind].append(found)
    least = {kind: min(median(times[size, kind]) for size in by_size) for _, kind in times}
    rows = []
    for size in by_size:
        medians = {kind: median(times[size, kind]) for kind in least}
        rows.append([str(size), *(word for kind, own in medians.items() for word in _cells(own, least[kind]))])
    head = ["samples at a time", "gradient ms", "over the least", "figures ms", "over the least"]
    lines = [f"Medians of {args.blocks} turns.", "", *table(head, rows)]
    print("\n".join(lines))
    if args.output:
        command = f"python benchmarks/profile/pieces.py {args.job}{spelled(args, 'job')}"
        write_report(args.output, f"Samples at a time: {args.job.stem}", command, lines, ranks=1)


def _cells(own: float, least: float) -> tuple[str, str]:
    return f"{1e3 * own:.1f}", f"{own / least:.2f}"


if __name__ == "__main__":
    main()
