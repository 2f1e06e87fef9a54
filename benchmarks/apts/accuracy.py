"""APTS with nothing tuned, on several numbers of ranks: does its accuracy fall with them, and what was published?

    python benchmarks/apts/accuracy.py --root DIR [--data cifar10] [--batch full] [--epochs 100] [--ranks 2 4 6 8]

Starts one ``mpirun`` for each number of ranks; more ranks than cores are fine for the accuracy (Open MPI:
``export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe OMPI_MCA_mpi_yield_when_idle=true``). DIR holds the set's
files (hpcopt data fetch mnist --root DIR). Runs stay under --runs; one that is finished is read, not repeated, so a
measurement that was interrupted goes on. ``--set`` as for ``hpcopt run``. Work is counted in gradients of the whole
training set. ``--output FILE.md`` writes the report with command, machine and versions.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, table, write_report
from benchmarks._runs import JOBS, percent, reductions, trained

NETWORKS = {"mnist": "784-512-256-10", "cifar10": "3072-512-512-10"}
EPOCHS = (1, 2, 5, 10, 25, 50, 100)
DEFAULT_EPOCHS = {"mnist": 10, "cifar10": 5}
PUBLISHED: dict[tuple[str, str], dict[str, dict[int, float]]] = {
    ("mnist", "10000"): {"10": {2: 96.57, 4: 91.17, 6: 87.35}, "100": {2: 98.24, 4: 97.11, 6: 95.98}},
    ("mnist", "full"): {"100": {2: 97.05, 4: 94.98, 6: 94.08}},
    ("cifar10", "10000"): {"5": {2: 49.73, 4: 34.07, 6: 32.80}, "best of 100": {2: 54.65, 4: 53.22, 6: 51.96}},
}
"""Test accuracy in % after so many epochs of the published method (first order), by the number of ranks, from the
result files of its authors (ML_APTS, March 2024). "Best" is of epochs 1, 5, 10, 25, 50 and 100."""
AIMS = {("mnist", "10000", 10): (98.0, 0.2)}
"""Lowest accuracy and largest spread over the numbers of ranks in %, after so many epochs."""


def settings(args: argparse.Namespace) -> list[str]:
    """What the runs differ in from the job file."""
    batch = '"full"' if args.batch == "full" else args.batch
    given = [f"run.seed={args.seed}", f"run.epochs={args.epochs}", f"run.evaluate_every={args.evaluate_every}"]
    given += [f"data.batch={batch}", f"solver.preset={args.preset}"]
    if args.stop_at is not None:
        given.append(f"run.stop.test_accuracy={args.stop_at}")
    return [*given, *args.set]


def row(ranks: int, told: dict[str, Any], epochs: list[int], published: dict[str, dict[int, float]]) -> list[str]:
    """One line of the table."""
    accuracy = {round(line["epoch"], 6): line["test_accuracy"] for line in told["history"]}
    theirs = [f"{column[ranks]:.2f}" if ranks in column else "-" for column in published.values()]
    return [
        str(ranks),
        *(percent(accuracy.get(epoch)) for epoch in epochs),
        f"{percent(told['best']['test_accuracy'])} ({told['best']['epoch']:g})",
        *theirs,
        f"{told['final']['train_loss']:.4f}",
        f"{told['epochs']:g}",
        f"{told['work']['gradient_equivalents']:.0f}",
        f"{reductions(told):.2f}",
        f"{told['steps']['accepted']} / {told['steps']['rejected']}",
    ]


def verdict(told: dict[int, dict[str, Any]], args: argparse.Namespace) -> str:
    """Lowest final accuracy and the spread, and the aim where there is one."""
    final = [100 * result["final"]["test_accuracy"] for result in told.values()]
    text = f"Lowest {min(final):.2f}, spread over the numbers of ranks {max(final) - min(final):.2f}"
    aim = AIMS.get((args.data, args.batch, args.epochs))
    if aim is None or args.stop_at is not None:
        return f"{text}."
    return f"{text} (aim after {args.epochs} epochs: at least {aim[0]:.1f}, at most {aim[1]:.1f})."


def report(told: dict[int, dict[str, Any]], args: argparse.Namespace) -> list[str]:
    """The table and what it says."""
    epochs = [epoch for epoch in EPOCHS if epoch <= args.epochs]
    published = PUBLISHED.get((args.data, args.batch), {})
    head = ["ranks", *(f"epoch {e}" for e in epochs), "best (epoch)", *(f"published, {name}" for name in published)]
    head += ["train loss", "epochs", "gradients", "reductions", "accepted / rejected"]
    batches = "full batch" if args.batch == "full" else f"batches of {int(args.batch):,} with 5 % overlap"
    stop = "" if args.stop_at is None else f" Runs end at {percent(args.stop_at)} %."
    return [
        f"{NETWORKS[args.data]} on {args.data}, {batches}, preset {args.preset}, float32, seed {args.seed}; test"
        f" accuracy in %.{stop}",
        "Gradients: all evaluations together in passes over the training set; a value counts a third. Reductions: of n"
        " numbers, for each gradient of a batch.",
        "",
        *table(head, [row(ranks, result, epochs, published) for ranks, result in told.items()]),
        "",
        verdict(told, args),
    ]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--data", choices=list(NETWORKS), default="mnist")
    parser.add_argument("--batch", default="10000", help='samples, or "full"')
    parser.add_argument("--epochs", type=int, help="default: 10 for mnist, 5 for cifar10")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 6, 8])
    parser.add_argument("--preset", choices=["default", "paper"], default="default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop-at", type=float, metavar="ACCURACY", help="a fraction, for example 0.98")
    parser.add_argument("--evaluate-every", type=float, default=1.0, metavar="EPOCHS")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark-apts"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    args.epochs = args.epochs or DEFAULT_EPOCHS[args.data]
    return args


def main() -> None:
    """Train on each number of ranks and report."""
    args = arguments()
    job = JOBS / f"{args.data}-apts.toml"
    told = {}
    for ranks in args.ranks:
        name = f"{args.data}-{args.batch}-{args.preset}-{ranks}"
        told[ranks] = trained(job, ranks, args.runs, name, args.root, settings(args))
    lines = report(told, args)
    print("\n".join(lines))
    if args.output:
        title = f"APTS on {'MNIST' if args.data == 'mnist' else 'CIFAR-10'} with nothing tuned"
        write_report(args.output, title, f"python benchmarks/apts/accuracy.py{spelled(args)}", lines)


if __name__ == "__main__":
    main()
