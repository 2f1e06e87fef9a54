"""NLCG with nothing tuned beside Adam, SGD with momentum, LARS and L-BFGS, at equal work and by seconds.

    python benchmarks/nlcg/accuracy.py --root DIR [--problems mnist full cifar10] [--seeds 0 1 2] [--ranks 2]

Three problems: MNIST with batches of 10,000 and with the full batch, and CIFAR-10 with batches of 10,000, each with
the network of its job file. NLCG has its defaults. Adam, SGD with momentum 0.9 and LARS run at each of five constant
rates for --patience times the work of NLCG, and the best rate is chosen by the very test accuracy that is compared;
L-BFGS has its defaults. All minimise the same loss on the same batches with the same ranks. Accuracy at some work, in
gradient equivalents, or after some seconds of training, without evaluations, is that of the last evaluation before, of
which NLCG has one an iteration. Seconds need a quiet machine. Runs stay under --runs; one that is finished is read, not
repeated. DIR holds the sets' files (hpcopt data fetch mnist --root DIR). ``--set`` as for ``hpcopt run``, for all
methods; ``--output FILE.md`` writes the report with command, machine and versions.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import table, write_report
from benchmarks._runs import JOBS, percent, trained

RATES = {
    "adam": (3e-4, 1e-3, 2.5e-3, 5e-3, 1e-2),
    "sgd": (0.01, 0.03, 0.1, 0.3, 1.0),
    "lars": (1.0, 3.0, 10.0, 30.0, 100.0),
}
OWN = {"sgd": ["solver.momentum=0.9"]}
AN_ITERATION = 1.4
"""Gradient equivalents that an iteration of NLCG takes at least; its runs are long enough for the budget."""


@dataclass(frozen=True)
class Problem:
    """One row of the table.

    Attributes:
        job: whose data and network are taken.
        batch: as in a job file.
        iterations: of an epoch.
        budget: work at which methods are compared, in gradient equivalents.
        aim: test accuracy that NLCG shall reach there.
        later: work at which training losses are compared, 0 for nowhere: NLCG's shall be a tenth of any other.
    """

    job: str
    batch: str
    iterations: int
    budget: float
    aim: float
    later: float = 0.0

    @property
    def most(self) -> float:
        """Work that NLCG is given."""
        return max(self.budget, self.later)


PROBLEMS = {
    "mnist": Problem("mnist-nlcg.toml", "10000", 6, 10.0, 0.982),
    "full": Problem("mnist-nlcg.toml", '"full"', 1, 40.0, 0.983, 60.0),
    "cifar10": Problem("cifar10-nlcg.toml", "10000", 5, 10.0, 0.56),
}


@dataclass(frozen=True)
class Run:
    """A method at a rate with one seed: its name and its evaluations, in order."""

    name: str
    history: Sequence[dict[str, Any]]

    def at(self, work: float, figure: str) -> float:
        """A figure of the last evaluation before so much work, NaN where the run ended before without it."""
        rows = [row for row in self.history if row["gradient_equivalents"] <= work * (1 + 1e-9)]
        found = rows[-1][figure]
        return math.nan if found is None else float(found)

    def seconds(self, accuracy: float) -> float:
        """Seconds of training until the first evaluation with so high a test accuracy, infinite if there is none."""
        return min(
            (row["seconds"] for row in self.history if (row["test_accuracy"] or 0) >= accuracy), default=math.inf
        )


def train(problem: Problem, seed: int, args: argparse.Namespace) -> dict[str, list[Run]]:
    """The runs of every method with one seed: one, or one a rate."""
    common = [f"run.seed={seed}", f"data.batch={problem.batch}", *args.set]

    def run(name: str, method: str, epochs: float, every: float, settings: Sequence[str] = ()) -> Run:
        given = [f"solver.name={method}", f"run.epochs={epochs:.6g}", f"run.evaluate_every={every:.6g}"]
        file = f"{Path(problem.job).stem}-{name.replace(', ', '-')}"
        told = trained(JOBS / problem.job, args.ranks, args.runs, file, args.root, [*common, *given, *settings])
        return Run(name, told["history"])

    each = 1 / problem.iterations
    epochs = math.ceil(problem.most / AN_ITERATION)
    long, seldom = args.patience * problem.most, max(each, 0.5)
    found = {"nlcg": [run("nlcg", "nlcg", epochs, each)]}
    for method, rates in RATES.items():
        own = OWN.get(method, [])
        found[method] = [
            run(f"{method}, {rate:g}", method, long, seldom, [f"solver.learning_rate={rate}", *own]) for rate in rates
        ]
    return found | {"lbfgs": [run("lbfgs", "lbfgs", problem.most, each)]}


def best(runs: Sequence[Sequence[Run]], problem: Problem) -> int:
    """Number of the rate with the best mean accuracy over the seeds at the budget; ``runs`` has a list a seed."""
    means = [
        mean(run.at(problem.budget, "test_accuracy") or 0 for run in of_rate) for of_rate in zip(*runs, strict=True)
    ]
    return max(range(len(means)), key=lambda number: -math.inf if math.isnan(means[number]) else means[number])


def rows(problem: Problem, seeds: Sequence[dict[str, list[Run]]]) -> list[list[str]]:
    """One line a method, at its best rate."""
    found = []
    for method in seeds[0]:
        number = best([runs[method] for runs in seeds], problem)
        runs = [each[method][number] for each in seeds]
        reached = [each["nlcg"][0].at(problem.budget, "test_accuracy") for each in seeds]
        waits = [run.seconds(accuracy) for run, accuracy in zip(runs, reached, strict=True)]
        accuracies = [run.at(problem.budget, "test_accuracy") for run in runs]
        found.append(
            [
                runs[0].name,
                percent(mean(accuracies)),
                " ".join(map(percent, accuracies)),
                f"{mean(run.at(problem.budget, 'train_loss') for run in runs):.3g}",
                f"{mean(run.at(problem.later, 'train_loss') for run in runs):.3g}" if problem.later else "-",
                percent(max(row["test_accuracy"] or 0 for run in runs for row in run.history)),
                " ".join("never" if math.isinf(wait) else f"{wait:.1f}" for wait in waits),
            ]
        )
    return found


def verdicts(problem: Problem, seeds: Sequence[dict[str, list[Run]]]) -> list[str]:
    """Whether the aims are met: accuracy, training loss, and seconds against Adam's at any of its rates."""
    accuracy = mean(each["nlcg"][0].at(problem.budget, "test_accuracy") for each in seeds)
    met = {True: "met", False: "NOT met"}
    lines = [f"- test accuracy {percent(accuracy)} % (aim: {percent(problem.aim)}): {met[accuracy >= problem.aim]}"]
    if problem.later:
        own = mean(each["nlcg"][0].at(problem.later, "train_loss") for each in seeds)
        others = [
            mean(each[method][number].at(problem.later, "train_loss") for each in seeds)
            for method, runs in seeds[0].items()
            if method != "nlcg"
            for number in range(len(runs))
        ]
        part = own / min(other for other in others if not math.isnan(other))
        lines.append(f"- training loss {part:.3g} of the lowest other (aim: 0.1): {met[part <= 0.1]}")
    ratios = []
    for each in seeds:
        reached = each["nlcg"][0].at(problem.budget, "test_accuracy")
        ratios.append(each["nlcg"][0].seconds(reached) / min(run.seconds(reached) for run in each["adam"]))
    text = " ".join(f"{ratio:.2f}" for ratio in ratios)
    lines.append(f"- seconds to that accuracy over those of Adam, 0 where it never gets there: {text} (aim: at most 1):"
                 f" {met[max(ratios) <= 1]}")  # fmt: skip
    return lines


def report(found: dict[str, list[dict[str, list[Run]]]], args: argparse.Namespace) -> list[str]:
    """A table and the verdicts for each problem."""
    lines = [
        f"{args.ranks} ranks, float32, seeds {' '.join(map(str, args.seeds))}. Means over the seeds; each tuned method"
        " at the best of five rates by this very test accuracy. Work: gradient equivalents. Seconds: of training, until"
        " NLCG's accuracy at the budget of the same seed.",
    ]
    for name, seeds in found.items():
        problem = PROBLEMS[name]
        head = ["method, rate", f"% at {problem.budget:g}", "each seed", f"loss at {problem.budget:g}"]
        head += [f"loss at {problem.later:g}" if problem.later else "-", "best %", "seconds"]
        title = f"{problem.job}, batch {problem.batch.strip(chr(34))}"
        lines += ["", f"## {title}", "", *table(head, rows(problem, seeds)), "", *verdicts(problem, seeds)]
    return lines


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--patience", type=float, default=4.0, help="work of the tuned methods over that of NLCG")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark-nlcg"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path)
    return parser.parse_args(words)


def main() -> None:
    """Train with every method on every problem and report."""
    args = arguments()
    found = {name: [train(PROBLEMS[name], seed, args) for seed in args.seeds] for name in args.problems}
    lines = report(found, args)
    print("\n".join(lines))
    if args.output:
        words = f"python benchmarks/nlcg/accuracy.py --root DIR --problems {' '.join(args.problems)}"
        words += f" --seeds {' '.join(map(str, args.seeds))} --ranks {args.ranks} --patience {args.patience:g}"
        words += "".join(f" --set {setting}" for setting in args.set)
        write_report(args.output, "NLCG beside tuned methods", words, lines, args.ranks)


if __name__ == "__main__":
    main()
