"""APTS with nothing tuned beside SGD with momentum and Adam, at equal work and at equal time, tuned and untuned.

    python benchmarks/apts/against.py --root DIR [--data cifar10] [--batch 10000] [--epochs 10] [--ranks 2]

All methods minimise the same loss on the same batches with the same ranks. APTS makes --epochs epochs; the others get
the gradient equivalents that it used, each at five learning rates, of which one is its default, with the schedule that
is its default, and are evaluated as often. SGD and Adam take turns. Runs stay under --runs; one that is finished is
read, not repeated. ``--set`` as for ``hpcopt run``, for all methods. DIR holds the set's files (hpcopt data fetch mnist
--root DIR). ``--output FILE.md`` writes the report with command, machine and versions.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, table, write_report
from benchmarks._runs import JOBS, percent, reductions, trained
from hpcopt.solvers.adam import Adam
from hpcopt.solvers.sgd import SGD

RATES = {"sgd": (0.01, 0.03, 0.1, 0.3, 1.0), "adam": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)}
DEFAULTS = {"sgd": SGD().learning_rate, "adam": Adam().learning_rate}
OWN = {"sgd": ["solver.momentum=0.9"], "adam": []}


@dataclass(frozen=True)
class Entry:
    """One run: its method, its learning rate (None for APTS) and what it came to."""

    method: str
    rate: float | None
    told: dict[str, Any]

    @property
    def name(self) -> str:
        """As it stands in the table."""
        return self.method if self.rate is None else f"{self.method}, {self.rate:g}"

    @property
    def seconds(self) -> float:
        """Training time of the whole run."""
        return float(self.told["seconds"])

    @property
    def diverged(self) -> bool:
        """Whether the run ended at numbers that are not finite."""
        return bool(self.told["status"] == "diverged")

    @property
    def final(self) -> float:
        """Test accuracy of the last iterate; 0 where the run diverged."""
        return 0.0 if self.diverged else float(self.told["final"]["test_accuracy"])

    def at(self, seconds: float) -> float:
        """Test accuracy after so many seconds of training, on a line between two evaluations."""
        if self.diverged and seconds >= self.seconds:
            return 0.0
        rows = [line for line in self.told["history"] if line["test_accuracy"] is not None]
        return float(np.interp(seconds, [r["seconds"] for r in rows], [r["test_accuracy"] for r in rows]))


def train(args: argparse.Namespace) -> list[Entry]:
    """APTS, then the others in turn."""
    job = JOBS / f"{args.data}-apts.toml"
    batch = '"full"' if args.batch == "full" else args.batch
    common = [f"run.seed={args.seed}", f"data.batch={batch}", *args.set]

    def run(name: str, settings: list[str]) -> dict[str, Any]:
        return trained(job, args.ranks, args.runs, f"{args.data}-{name}", args.root, [*common, *settings])

    apts = run("apts", [f"run.epochs={args.epochs}"])
    passes_of_an_epoch = apts["passes_of_a_batch"] * apts["iterations"] / apts["epochs"]  # above 1 with overlap
    epochs = round(apts["work"]["gradient_equivalents"] / passes_of_an_epoch, 3)
    entries = [Entry("apts", None, apts)]
    for place in range(max(len(rates) for rates in RATES.values())):
        for method, rates in RATES.items():
            settings = [f"solver.name={method}", f"solver.learning_rate={rates[place]}", *OWN[method]]
            settings += [f"run.epochs={epochs}", f"run.evaluate_every={epochs / args.epochs:.6g}"]
            entries.append(Entry(method, rates[place], run(f"{method}-{rates[place]:g}", settings)))
    return entries


def row(entry: Entry, seconds: float) -> list[str]:
    """One line of the table."""
    told, loss = entry.told, entry.told["final"]["train_loss"]
    default = " (default)" if entry.rate is not None and entry.rate == DEFAULTS[entry.method] else ""
    return [
        entry.name + default,
        "diverged" if entry.diverged else percent(entry.final),
        percent(told["best"]["test_accuracy"]),
        "-" if loss is None else f"{loss:.4g}",
        f"{told['work']['gradient_equivalents']:.1f}",
        f"{entry.seconds:.1f}",
        percent(entry.at(seconds)),
        f"{reductions(told):.2f}",
    ]


def gaps(entries: list[Entry], seconds: float | None) -> str:
    """How far APTS is from each other method at its best and at its default rate, at equal work or at equal time."""

    def accuracy(entry: Entry) -> float:
        return 100 * (entry.final if seconds is None else entry.at(seconds))

    apts = accuracy(entries[0])
    tuned, untuned = [], []
    for method in RATES:
        own = [entry for entry in entries if entry.method == method]
        best = max(own, key=accuracy)
        default = next(entry for entry in own if entry.rate == DEFAULTS[method])
        tuned.append(f"{apts - accuracy(best):+.2f} against {method} at {best.rate:g} ({accuracy(best):.2f})")
        untuned.append(f"{apts - accuracy(default):+.2f} against {method} ({accuracy(default):.2f})")
    where = "At equal work" if seconds is None else f"At equal time ({seconds:.1f} s)"
    return (
        f"{where} APTS has {apts:.2f} %. Tuned gap, to the best of five rates by this very test accuracy:"
        f" {', '.join(tuned)}. Untuned gap, to the default rate: {', '.join(untuned)}."
    )


def report(entries: list[Entry], args: argparse.Namespace) -> list[str]:
    """The table and the gaps."""
    seconds = min(entry.seconds for entry in entries if not entry.diverged)
    head = ["method, learning rate", "final %", "best %", "train loss", "gradients", "seconds"]
    head += [f"% at {seconds:.1f} s", "reductions"]
    batch = "full batch" if args.batch == "full" else f"batches of {int(args.batch):,}"
    return [
        f"{args.data}, the network and loss of jobs/{args.data}-apts.toml, {batch}, {args.ranks} ranks, float32, seed"
        f" {args.seed}; test accuracy in %. APTS: {entries[0].told['epochs']:g} epochs.",
        "Gradients: all evaluations together in passes over the training set; a value counts a third. Seconds: of"
        " training, without evaluations. Reductions: of n numbers, for each gradient of a batch.",
        "",
        *table(head, [row(entry, seconds) for entry in entries]),
        "",
        gaps(entries, None),
        gaps(entries, seconds),
    ]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--data", choices=["mnist", "cifar10"], default="mnist")
    parser.add_argument("--batch", default="10000", help='samples, or "full"')
    parser.add_argument("--epochs", type=int, default=10, help="of APTS")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark-against"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    """Train with every method and report."""
    args = arguments()
    lines = report(train(args), args)
    print("\n".join(lines))
    if args.output:
        command = f"python benchmarks/apts/against.py{spelled(args)}"
        write_report(args.output, "APTS beside SGD and Adam", command, lines)


if __name__ == "__main__":
    main()
