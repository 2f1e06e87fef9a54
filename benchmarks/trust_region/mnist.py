"""The trust-region method with nothing tuned on all of MNIST, beside baselines: does its loss ever rise?

    mpirun -n 2 python benchmarks/trust_region/mnist.py --root DIR [--output benchmarks/results/trust-region-mnist.md]

DIR holds MNIST's four files (hpcopt data fetch mnist --root DIR). The run directories stay under --runs, so that
``hpcopt plot RUNS/* -o FILE.png`` draws the curves. Work is counted in gradients of the whole training set.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, table, write_report
from hpcopt.comm.communicator import Communicator
from hpcopt.comm.launch import choose_threads
from hpcopt.config import parse_job, read_job
from hpcopt.train.job import PreparedJob
from hpcopt.train.protocol import Result

JOB = Path(__file__).resolve().parents[2] / "jobs" / "mnist-trust-region.toml"
FULL = ("trust_region, full batch", "lbfgs, full batch")
METHODS = {
    "trust_region, full batch": [],
    "lbfgs, full batch": ["solver.name=lbfgs"],
    "trust_region, 1000": ["data.batch=1000"],
    "adam, 1e-3": ["solver.name=adam", "data.batch=512"],
    "sgd, 0.1": ["solver.name=sgd", "solver.momentum=0.9", "data.batch=512", "solver.learning_rate=0.1"],
    "sgd, 0.01": ["solver.name=sgd", "solver.momentum=0.9", "data.batch=512", "solver.learning_rate=0.01"],
    "sgd, 1.0": ["solver.name=sgd", "solver.momentum=0.9", "data.batch=512", "solver.learning_rate=1.0"],
}

HEAD = ("method", "gradients", "seconds", "train loss", "test %", "best test %", "rejected", "rises of the loss")


class Watch:
    """Looks at the loss before and after every step, on rank 0."""

    def __init__(self) -> None:
        self.steps = self.rises = self.rejected = 0
        self.last = math.inf

    def iteration(self, **columns: Any) -> None:
        """A rise is a loss at the start of a step above that at the start of the step before."""
        self.steps += 1
        self.rises += columns["loss"] > self.last
        self.rejected += 1 - columns["accepted"]
        self.last = columns["loss"]

    def evaluation(self, **columns: Any) -> None:
        """Kept in the result."""

    def rank_times(self, *_: Any) -> None:
        """Not of interest."""


def train(comm: Communicator, name: str, args: argparse.Namespace) -> tuple[Result, Watch]:
    """One run of the job with the settings of ``name``."""
    settings = [f"data.root={args.root}", f"run.seed={args.seed}", f"run.name={name}", *METHODS[name]]
    if name not in FULL:
        settings.append(f"run.epochs={args.small_batch_epochs}")
        settings.append("run.evaluate_every=1")
    prepared = PreparedJob(parse_job(read_job(JOB), settings), comm)
    watch = Watch()
    directory = args.runs / name.replace(", ", "-").replace(" ", "-")
    return prepared.run(directory, fresh=True, listeners=[watch]), watch


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark-mnist"))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--small-batch-epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    """Train with every method and report on rank 0."""
    args, comm = arguments(), Communicator()
    choose_threads(comm)
    rows = []
    for name in args.methods:
        result, watch = train(comm, name, args)
        if comm.rank == 0:
            work = result.history[-1]["gradient_equivalents"]
            figures = [f"{work:.0f}", f"{result.seconds:.0f}", f"{result.final.train_loss:.2e}"]
            accuracies = [f"{100 * result.final.test_accuracy:.2f}", f"{100 * result.best.test_accuracy:.2f}"]
            rises = str(watch.rises) if name in FULL else "-"
            rows.append([name, *figures, *accuracies, str(watch.rejected), rises])
    if comm.rank == 0:
        lines = [f"784-512-256-10, {comm.size} ranks, float32, seed {args.seed}.", "", *table(HEAD, rows)]
        print("\n".join(lines))
        if args.output:
            command = f"mpirun -n {comm.size} python benchmarks/trust_region/mnist.py{spelled(args)}"
            write_report(args.output, "MNIST with nothing tuned", command, lines)


if __name__ == "__main__":
    main()
