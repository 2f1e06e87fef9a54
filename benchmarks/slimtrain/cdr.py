"""SlimTrain and Adam on convection, diffusion and reaction, at three learning rates: medians over seeds.

    python benchmarks/slimtrain/cdr.py --root DIR [--epochs 20] [--seeds 3] [--output slimtrain-cdr.md]

The job is jobs/cdr-slimtrain.toml: batches of 5 of 400 samples, half the squared distance over 72 observations. The
seed draws the split, the first weights and the order of the samples. Of the samples that do not train 200 validate, by
which the best epoch is chosen, and 200 test what it left. Nothing is timed. DIR holds CDR_Data.mat.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, table, write_report
from benchmarks.slimtrain._rates import JOBS, arguments, losses, medians, text, trained
from hpcopt.data.functions import open_cdr
from hpcopt.random import permutation
from hpcopt.train.job import PreparedJob
from hpcopt.train.protocol import Result

RATES = (1e-3, 1e-2, 1e-1)
TRAIN, VALIDATION = 400, 200


def tested(prepared: PreparedJob, result: Result, seed: int, root: str) -> float:
    """Loss of the best point on the samples that neither train nor validate."""
    samples = open_cdr(Path(root)).train
    rows = permutation(seed, "sample order", 0, samples.rows)[TRAIN : samples.rows - VALIDATION]
    inputs, targets = (torch.from_numpy(part).double() for part in samples.read(rows))
    _, sums = prepared.objective.evaluate(result.best_parameters, (inputs, targets))
    return sums.loss / len(rows)


def row(name: str, epochs: list[int], args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Medians of the validation loss at every rate and how far they are apart at the end; the same of the test loss."""
    validation, test, ends = [], [], []
    for rate in RATES:
        runs = []
        for seed in range(args.seeds):
            settings = [f"data.root={args.root}", f"run.epochs={args.epochs}", *args.set]
            prepared, result = trained(JOBS / "cdr-slimtrain.toml", name, rate, seed, settings)
            runs.append([*losses(result, epochs), tested(prepared, result, seed, args.root)])
        *found, best = medians(runs)
        validation.append(text(found))
        test.append(f"{best:.3g}")
        ends.append(found[-1])
        print(name, rate, validation[-1], test[-1], [text(run) for run in runs], flush=True)
    return [name, *validation, f"{max(ends) / min(ends):.1f}"], [name, *test]


def main() -> None:
    """Train every method at every rate and report."""
    parser = arguments(__doc__, 20)
    parser.add_argument("--root", required=True)
    args = parser.parse_args()
    epochs = [epoch for epoch in (1, 5, 20, 50, 100) if epoch <= args.epochs]
    rows = [row(name, epochs, args) for name in args.methods]
    rates = [f"rate {rate:g}" for rate in RATES]
    lines = [
        f"Validation loss after {', '.join(map(str, epochs))} epochs; medians over {args.seeds} seeds.",
        "",
        *table(["method", *rates, "worst over best"], [validation for validation, _ in rows]),
        "",
        "Test loss at the epoch of the least validation loss.",
        "",
        *table(["method", *rates], [test for _, test in rows]),
    ]
    print("\n".join(lines))
    if args.output:
        command = f"python benchmarks/slimtrain/cdr.py{spelled(args)}"
        write_report(args.output, "slimTrain and Adam on convection, diffusion and reaction", command, lines, ranks=1)


if __name__ == "__main__":
    main()
