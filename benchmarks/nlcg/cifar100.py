"""The published table of NLCG: ResNet-32 on CIFAR-100 with batches of 8,192 and 16,384, beside SGD with momentum.

    python benchmarks/nlcg/cifar100.py --root DIR [--batches 8192 16384] [--methods paper default momentum] [--ranks 1]

Three methods with the network, the images, the loss and the 200 epochs of jobs/cifar100-nlcg.toml: NLCG as published
(preset "paper", at the rate of linear scaling, 0.1 for each 128 samples), NLCG with its defaults, which have no rate,
and SGD with momentum 0.9 at five rates up to that of linear scaling, with the same schedule and warm-up. The published
rates of each row are not known. What is evaluated is a mean of the weights for NLCG and the weights for momentum.

Wants a GPU. A run that is finished is read, one that was interrupted goes on, so the same command is given until all
are there. ``--epochs`` shortens the runs, and warm-up and schedule with them; ``--limit`` takes the first images only,
and batches are at most that large: ``--epochs 1 --limit 512 --batches 128`` tries everything on a few cores. ``--set``
as for ``hpcopt run``, for all methods; ``--output FILE.md`` writes the report with command, machine and versions.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, table, write_report
from benchmarks._runs import JOBS, percent, trained

JOB = JOBS / "cifar100-nlcg.toml"
METHODS = ("paper", "default", "momentum")
PUBLISHED = {
    8192: {"paper": 0.670, "momentum": 0.660},
    16384: {"paper": 0.560, "momentum": 0.370},
}
"""Test accuracies after 200 epochs, read from the table of the released code."""
RATE, SAMPLES = 0.1, 128
"""Linear scaling: this rate for so many samples of a batch."""
PARTS = (1 / 64, 1 / 16, 1 / 4, 1 / 2, 1.0)
"""Rates of momentum, in parts of that of linear scaling: from the released default of 0.1 at 8,192."""
DROPS, WARMUP = (0.51, 0.765), 0.125
"""Parts of the run at which the rate drops, and that the warm-up takes."""
EVALUATIONS = 40


def schedule(epochs: float) -> list[str]:
    """The recipe's warm-up and drops of the rate for a run of so many epochs."""
    drops = ", ".join(f"{part * epochs:.10g}" for part in DROPS)
    warmup = ["solver.warmup=sqrt", f"solver.warmup_epochs={WARMUP * epochs:.10g}"]
    return ["solver.schedule=step", f"solver.decay_epochs=[{drops}]", *warmup]


def methods(batch: int, epochs: float, chosen: Sequence[str]) -> dict[str, list[str]]:
    """The settings of every run with batches of ``batch`` samples, by its name."""
    rate = RATE * batch / SAMPLES
    found = {
        "paper": [f"solver.learning_rate={rate:g}", *schedule(epochs)],
        # The job has a rate, which the method would refuse as one that it does not read, unless it is the default.
        "default": ["solver.preset=default", f"solver.learning_rate={RATE}"],
    }
    for part in PARTS:
        own = ["solver.name=sgd", "solver.preset=default", "solver.momentum=0.9"]
        found[f"momentum, {part * rate:g}"] = [*own, f"solver.learning_rate={part * rate:g}", *schedule(epochs)]
    return {name: settings for name, settings in found.items() if name.split(",")[0] in chosen}


def train(batch: int, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What ``hpcopt inspect`` says of every run with batches of ``batch`` samples."""
    common = [f"run.seed={args.seed}", f"run.epochs={args.epochs:g}", f"run.evaluate_every={args.epochs / EVALUATIONS}"]
    common += [f"data.batch={batch}", *([] if args.limit is None else [f"data.limit={args.limit}"]), *args.set]
    return {
        name: trained(
            *(JOB, args.ranks, args.runs, f"{batch}-{name.replace(', ', '-')}", args.root, [*common, *settings]),
            resume=True,
        )
        for name, settings in methods(batch, args.epochs, args.methods).items()
    }


def rows(batch: int, runs: dict[str, dict[str, Any]]) -> list[list[str]]:
    """One line a run."""
    found = []
    for name, told in runs.items():
        best, work, loss = told["best"], told["work"]["gradient_equivalents"], told["final"]["train_loss"]
        found.append(
            [
                name,
                percent(told["final"]["test_accuracy"]) if told["status"] == "finished" else told["status"],
                f"{percent(best['test_accuracy'])} ({best['epoch'] or 0:g})",
                percent(PUBLISHED.get(batch, {}).get(name.split(",")[0])),
                f"{math.inf if loss is None else loss:.3g}",
                f"{work:.0f}",
                f"{told['seconds']:.0f}",
            ]
        )
    return found


def report(found: dict[int, dict[str, dict[str, Any]]], args: argparse.Namespace) -> list[str]:
    """A table for each size of the batch."""
    lines = [
        f"{args.ranks} ranks, float32, seed {args.seed}, {args.epochs:g} epochs"
        + ("." if args.limit is None else f", the first {args.limit} images.")
        + " Test accuracy in %; published: after 200 epochs, momentum at its best rate. Work: gradient equivalents."
    ]
    head = ["method, rate", "final %", "best % (epoch)", "published %", "training loss", "work", "seconds"]
    for batch, runs in found.items():
        sizes = sorted({line["batch"] for told in runs.values() for line in told["history"] if line["batch"]})
        evened = ", ".join(f"{size:g}" for size in sizes)
        lines += ["", f"## Batches of at most {batch}, evened out: {evened}", "", *table(head, rows(batch, runs))]
    return lines


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--batches", nargs="+", type=int, default=list(PUBLISHED))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--epochs", type=float, default=200.0)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark-cifar100"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Train with every method at every size of the batch and report."""
    args = arguments(words)
    sizes = args.batches if args.limit is None else sorted({min(batch, args.limit) for batch in args.batches})
    lines = report({batch: train(batch, args) for batch in sizes}, args)
    print("\n".join(lines))
    if args.output:
        command = f"python benchmarks/nlcg/cifar100.py{spelled(args)}"
        write_report(args.output, "The published table of NLCG: CIFAR-100, ResNet-32", command, lines, args.ranks)


if __name__ == "__main__":
    main()
