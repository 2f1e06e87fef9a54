"""NLCG with nothing tuned beside Adam, SGD with momentum, LARS and L-BFGS, at equal work and by seconds.

    python benchmarks/nlcg/accuracy.py --root DIR [--problems mnist full cifar10] [--seeds 0 1 2] [--ranks 2]

Three problems: MNIST with batches of 10,000 and with the full batch, and CIFAR-10 with batches of 10,000, each with
the network of its job file. NLCG has its defaults. Adam, SGD with momentum 0.9 and LARS run at each of several constant
rates for --patience times the work of NLCG, and the best rate is chosen by the very test accuracy that is compared;
L-BFGS has its defaults. All minimise the same loss on the same batches with the same ranks. Accuracy at some work, in
gradient equivalents, or after some seconds of training, without evaluations, is that of the last evaluation before, of
which NLCG has one an iteration. ``--line-search`` adds NLCG with the line search of Hager and Zhang on the full batch.
Seconds need a quiet machine. Runs stay under --runs; one that is finished is read, not repeated. DIR holds the sets'
files (hpcopt data fetch mnist --root DIR). ``--set`` as for ``hpcopt run``, for all methods; ``--output FILE.md``
writes the report with command, machine and versions.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._runs import percent
from benchmarks.nlcg._comparison import (
    Problem,
    Runs,
    accuracy_of,
    command_line,
    deliver,
    figures,
    introduction,
    others,
    trained_on_all,
)

PROBLEMS = {
    "mnist": Problem("mnist-nlcg.toml", "10000", 6, 10.0, 0.982),
    "full": Problem("mnist-nlcg.toml", '"full"', 1, 40.0, 0.983, 60.0),
    "cifar10": Problem("cifar10-nlcg.toml", "10000", 5, 10.0, 0.56),
}
"""The aim is a test accuracy; where training losses are compared, NLCG's shall be a tenth of any other."""
LINE_SEARCH = {"nlcg, hager_zhang": ["solver.step_rule=hager_zhang"]}
MET = {True: "met", False: "NOT met"}


def verdicts(problem: Problem, seeds: Sequence[Runs]) -> list[str]:
    """Whether the aims are met: accuracy, training loss, and seconds against Adam's at any of its rates."""
    accuracy = accuracy_of([each["nlcg"][0] for each in seeds], problem)
    lines = [f"- test accuracy {percent(accuracy)} % (aim: {percent(problem.aim)}): {MET[accuracy >= problem.aim]}"]
    if problem.later:
        own = mean(each["nlcg"][0].at(problem.later, "train_loss") for each in seeds)
        losses = [
            mean(each[method][number].at(problem.later, "train_loss") for each in seeds)
            for method in others(seeds[0])
            for number in range(len(seeds[0][method]))
        ]
        part = own / min(loss for loss in losses if not math.isnan(loss))
        lines.append(f"- training loss {part:.3g} of the lowest other (aim: 0.1): {MET[part <= 0.1]}")
    if "adam" not in seeds[0]:
        return lines
    ratios = []
    for each in seeds:
        reached = each["nlcg"][0].at(problem.budget, "test_accuracy")
        ratios.append(each["nlcg"][0].seconds(reached) / min(run.seconds(reached) for run in each["adam"]))
    text = " ".join(f"{ratio:.2f}" if ratio else "never" for ratio in ratios)
    lines.append(f'- seconds to that accuracy over those of Adam, "never" where it does not get there: {text} (aim: at'
                 f" most 1): {MET[max(ratios) <= 1]}")  # fmt: skip
    return lines


def report(found: dict[str, list[Runs]], args: argparse.Namespace) -> list[str]:
    """A table and the verdicts for each problem."""
    lines = [introduction(args)]
    for name, seeds in found.items():
        problem = PROBLEMS[name]
        lines += ["", f"## {problem.title}", "", *figures(problem, seeds), "", *verdicts(problem, seeds)]
    return lines


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, 4.0, "runs/benchmark-nlcg")
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--line-search", action="store_true")
    return parser.parse_args(words)


def main() -> None:
    """Train with every method on every problem and report."""
    args, found = arguments(), {}
    for name in args.problems:
        variants = LINE_SEARCH if args.line_search and name == "full" else {}
        found[name] = trained_on_all(PROBLEMS[name], args, variants)
    deliver(args, "NLCG beside tuned methods", "python benchmarks/nlcg/accuracy.py", report(found, args))


if __name__ == "__main__":
    main()
