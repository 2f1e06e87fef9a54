"""NLCG with nothing tuned on a small convolutional network, by size of the batch, beside tuned methods at equal work.

    python benchmarks/nlcg/cnn.py --root DIR [--batches 1024 4096 16384 full] [--epochs 20] [--seeds 0 1 2] [--ranks 2]

CIFAR-10 with the network of jobs/cifar10-cnn-nlcg.toml. NLCG has its defaults; Adam, SGD with momentum 0.9 and LARS run
at each of several constant rates, the best chosen by the very test accuracy that is compared; L-BFGS has its
defaults. All are compared at the work of --epochs epochs of gradient descent, of which NLCG makes about half; accuracy
is that of the last evaluation before. ``--limit`` takes the first images only, and batches of at least so many are the
full batch; with few images an iteration of NLCG costs more, since up to 2,000 of them make its factors. ``--methods``
takes some of the others only. ``--limit 2000 --batches 500 full --epochs 2 --seeds 0`` tries everything on a few cores.
Seconds need a quiet machine. Runs stay under --runs; one that is finished is read, not repeated. ``--set`` as for
``hpcopt run``, for all methods; ``--output FILE.md`` writes the report with command, machine and versions.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._runs import percent
from benchmarks.nlcg._comparison import (
    Problem,
    Runs,
    accuracy_of,
    at_best,
    command_line,
    deliver,
    figures,
    introduction,
    others,
    trained_on_all,
)

JOB, IMAGES = "cifar10-cnn-nlcg.toml", 50000
BATCHES = ("1024", "4096", "16384", "full")
LARGE, BEHIND = 16384, -0.003
"""From this size of the batch on NLCG shall be ahead, below it at most so far behind, as a fraction."""
LOOK = 0.25
"""Epochs between evaluations of NLCG and L-BFGS at least."""


def problems(args: argparse.Namespace) -> list[Problem]:
    """One for each size of the batch, ascending; the aim is the lead of NLCG over the best other method."""
    images = IMAGES if args.limit is None else args.limit
    sizes = sorted({images if batch == "full" else min(int(batch), images) for batch in args.batches})
    return [
        Problem(
            JOB,
            '"full"' if size == images else str(size),
            math.ceil(images / size),
            args.epochs,
            0.0 if size == images or size >= LARGE else BEHIND,
            look=LOOK,
        )
        for size in sizes
    ]


def verdict(problem: Problem, seeds: Sequence[Runs]) -> str:
    """Whether NLCG is as far ahead of the best other method as it shall be."""
    runs = at_best(problem, seeds)
    rivals = {runs[method][0].name: accuracy_of(runs[method], problem) for method in others(runs)}
    rival = max(rivals, key=lambda name: -math.inf if math.isnan(rivals[name]) else rivals[name])
    lead = accuracy_of(runs["nlcg"], problem) - rivals[rival]
    met = "met" if lead >= problem.aim else "NOT met"
    return f"- {100 * lead:+.2f} points ahead of {rival} (aim: at least {percent(problem.aim)}): {met}"


def report(found: Sequence[tuple[Problem, Sequence[Runs]]], args: argparse.Namespace) -> list[str]:
    """A table and the verdict for each size of the batch."""
    lines = [introduction(args) + ("" if args.limit is None else f" The first {args.limit:,} images.")]
    for problem, seeds in found:
        lines += ["", f"## {problem.title}", "", *figures(problem, seeds), "", verdict(problem, seeds)]
    return lines


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, 1.0, "runs/benchmark-cnn")
    parser.add_argument("--batches", nargs="+", default=list(BATCHES), help='samples, or "full"')
    parser.add_argument("--epochs", type=float, default=20.0)
    parser.add_argument("--limit", type=int)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Train with every method at every size of the batch and report."""
    args = arguments(words)
    own = [] if args.limit is None else [f"data.limit={args.limit}"]
    trained = argparse.Namespace(**vars(args) | {"set": [*own, *args.set]})
    found = [(problem, trained_on_all(problem, trained)) for problem in problems(args)]
    title, command = "NLCG on a small convolutional network beside tuned methods", "python benchmarks/nlcg/cnn.py"
    deliver(args, title, command, report(found, args))


if __name__ == "__main__":
    main()
