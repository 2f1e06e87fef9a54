"""APTS on MNIST with nothing tuned, on several numbers of ranks: does its accuracy fall with them?

    python benchmarks/apts/mnist.py --root DIR [--ranks 2 4 6 8] [--output benchmarks/results/apts-mnist.md]

Starts one ``mpirun`` for each number of ranks; more ranks than cores are fine for the accuracy (Open MPI:
``export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe OMPI_MCA_mpi_yield_when_idle=true``). DIR holds MNIST's
four files (hpcopt data fetch mnist --root DIR). Runs stay under --runs; one that is finished is read, not repeated, so
a measurement that was interrupted goes on. ``--set`` as for ``hpcopt run``, for example ``solver.preset=paper``.
Work is counted in gradients of the whole training set.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import table, write_report

REPOSITORY = Path(__file__).resolve().parents[2]
JOB = REPOSITORY / "jobs" / "mnist-apts.toml"
PUBLISHED = {"2": "96.57", "4": "91.17", "6": "87.35"}
"""Test accuracy after 10 epochs of the published method, from the result files of its authors (ML_APTS, March 2024)."""
EPOCHS = (1, 2, 5, 10)


def run(ranks: int, args: argparse.Namespace) -> dict[str, Any]:
    """What ``hpcopt inspect --json --history`` says of the run on ``ranks`` ranks, trained first if it is not there."""
    directory = args.runs / f"apts-{ranks}"
    hpcopt = [sys.executable, "-m", "hpcopt"]
    status = directory / "status.json"
    if not status.exists() or json.loads(status.read_text(encoding="utf-8"))["status"] != "finished":
        settings = [f"data.root={args.root}", f"run.seed={args.seed}", f"run.epochs={args.epochs}", *args.set]
        options = [word for setting in settings for word in ("--set", setting)]
        command = [
            "mpirun",
            "-n",
            str(ranks),
            *hpcopt,
            "run",
            str(JOB),
            "--run-dir",
            str(directory),
            "--fresh",
            *options,
        ]
        subprocess.run(command, cwd=REPOSITORY, check=True)
    told = subprocess.run(
        [*hpcopt, "inspect", str(directory), "--json", "--history"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(told.stdout)
    return result


def row(ranks: int, told: dict[str, Any]) -> list[str]:
    """One line of the table."""
    accuracy = {round(line["epoch"], 6): line["test_accuracy"] for line in told["history"]}
    shown = [f"{100 * accuracy[epoch]:.2f}" if epoch in accuracy else "-" for epoch in EPOCHS]
    work, steps = told["work"], told["steps"]
    return [
        str(ranks),
        *shown,
        f"{100 * told['best']['test_accuracy']:.2f} ({told['best']['epoch']:.0f})",
        PUBLISHED.get(str(ranks), "-"),
        f"{told['final']['train_loss']:.4f}",
        f"{work['gradient_equivalents']:.0f}",
        f"{steps['accepted']} / {steps['rejected']}",
    ]


def main() -> None:
    """Train on each number of ranks and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark-apts"))
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 6, 8])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    args.runs = args.runs.resolve()
    told = {ranks: run(ranks, args) for ranks in args.ranks}
    final = [100 * result["final"]["test_accuracy"] for result in told.values()]
    head = ["ranks", *(f"epoch {e}" for e in EPOCHS), "best (epoch)", "published, 10", "train loss", "gradients"]
    head.append("accepted / rejected")
    lines = [
        f"784-512-256-10, batches of 10,000 with 5 % overlap, float32, seed {args.seed}; test accuracy in %.",
        "Gradients: all evaluations together in passes over the training set; a value counts a third.",
        "",
        *table(head, [row(ranks, result) for ranks, result in told.items()]),
        "",
        f"Lowest {min(final):.2f}, spread over the numbers of ranks {max(final) - min(final):.2f}"
        " (aim after 10 epochs: at least 98.0, at most 0.2).",
    ]
    print("\n".join(lines))
    if args.output:
        extra = "".join(f" --set {setting}" for setting in args.set)
        command = f"python benchmarks/apts/mnist.py --root DIR --ranks {' '.join(map(str, args.ranks))}{extra}"
        write_report(args.output, "APTS on MNIST with nothing tuned", command, lines)


if __name__ == "__main__":
    main()
