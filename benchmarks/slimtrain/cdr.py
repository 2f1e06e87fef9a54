"""SlimTrain and Adam on convection, diffusion and reaction, at three learning rates: medians over seeds.

    python benchmarks/slimtrain/cdr.py --root DIR [--epochs 20] [--seeds 3] [--output slimtrain-cdr.md]

The job is jobs/cdr-slimtrain.toml: batches of 5 of 400 samples, half the squared distance over 72 observations. The
seed draws the split, the first weights and the order of the samples. Nothing is timed. DIR holds CDR_Data.mat.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import table, write_report
from hpcopt.comm.communicator import Communicator
from hpcopt.config import parse_job, read_job
from hpcopt.train.job import PreparedJob

JOB = Path(__file__).resolve().parents[2] / "jobs" / "cdr-slimtrain.toml"
RATES = (1e-3, 1e-2, 1e-1)
METHODS: dict[str, dict[str, Any]] = {
    "adam": {"name": "adam"},
    "slimTrain, preset paper": {"name": "slimtrain", "preset": "paper"},
    "slimTrain": {"name": "slimtrain"},
}


def losses(solver: dict[str, Any], rate: float, seed: int, args: argparse.Namespace) -> dict[int, float]:
    """Test loss by epochs done."""
    settings = [f"data.root={args.root}", f"run.seed={seed}", f"run.epochs={args.epochs}"]
    settings += [f"solver.{key}={value}" for key, value in {**solver, "learning_rate": rate}.items()]
    result = PreparedJob(parse_job(read_job(JOB), settings), Communicator()).run(None)
    return {round(row["epoch"]): row["test_loss"] for row in result.history}


def row(name: str, args: argparse.Namespace) -> list[str]:
    """Medians at some epochs of every rate, and how far the rates are apart at the end."""
    cells, ends = [], []
    for rate in RATES:
        runs = [losses(METHODS[name], rate, seed, args) for seed in range(args.seeds)]
        epochs = [epoch for epoch in (1, 5, 20, 100) if epoch <= args.epochs]
        medians = [median(run[epoch] for run in runs) for epoch in epochs]
        cells.append(" / ".join(f"{value:.3g}" for value in medians))
        ends.append(medians[-1])
        print(name, rate, cells[-1], flush=True)
    return [name, *cells, f"{max(ends) / min(ends):.1f}"]


def main() -> None:
    """Train every method at every rate and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    head = ["method", *(f"rate {rate:g}" for rate in RATES), "worst over best"]
    lines = [
        f"Test loss after 1, 5, 20 and 100 epochs, as far as {args.epochs}; medians over {args.seeds} seeds.",
        "",
        *table(head, [row(name, args) for name in args.methods]),
    ]
    print("\n".join(lines))
    if args.output:
        command = f"python benchmarks/slimtrain/cdr.py --root DIR --epochs {args.epochs} --seeds {args.seeds}"
        write_report(args.output, "slimTrain and Adam on convection, diffusion and reaction", command, lines, ranks=1)


if __name__ == "__main__":
    main()
