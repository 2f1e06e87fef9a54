"""SlimTrain against Adam at every learning rate of a sweep, early and at the end: medians over seeds.

    python benchmarks/slimtrain/sweep.py jobs/peaks-slimtrain.toml [--epochs 50] [--rates 1e-4 1e-3 1e-2 1e-1]

The seed draws the samples or their order, and the first weights. Nothing is timed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, table, write_report
from benchmarks.slimtrain._rates import arguments, losses, medians, text, trained


def main() -> None:
    """Train every method at every rate and report."""
    parser = arguments(__doc__, 50)
    parser.add_argument("job", type=Path)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 1e-3, 1e-2, 1e-1])
    args = parser.parse_args()
    epochs = sorted({min(5, args.epochs), args.epochs})
    settings, rows = [f"run.epochs={args.epochs}", *args.set], []
    for name in args.methods:
        rows.append([name])
        for rate in args.rates:
            runs = [losses(trained(args.job, name, rate, seed, settings)[1], epochs) for seed in range(args.seeds)]
            rows[-1].append(text(medians(runs)))
            print(name, rate, rows[-1][-1], [text(run) for run in runs], flush=True)
    lines = [
        f"Test loss after {' and '.join(map(str, epochs))} epochs; medians over {args.seeds} seeds.",
        "",
        *table(["method", *(f"rate {rate:g}" for rate in args.rates)], rows),
    ]
    print("\n".join(lines))
    if args.output:
        command = f"python benchmarks/slimtrain/sweep.py {args.job}{spelled(args, 'job')}"
        title = f"slimTrain and Adam by learning rate: {args.job.stem}"
        write_report(args.output, title, command, lines, ranks=1)


if __name__ == "__main__":
    main()
