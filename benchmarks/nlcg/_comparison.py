"""NLCG with nothing tuned and other methods at several rates on one problem: their runs, a line of figures for each.

What is compared are figures at equal work, in gradient equivalents, and seconds of training. A figure at some work is
that of the last evaluation before.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks._report import spelled, table, write_report
from benchmarks._runs import JOBS, Run, percent, trained

RATES = {
    "adam": (3e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2e-2),
    "sgd": (0.01, 0.03, 0.1, 0.3, 1.0),
    "lars": (1.0, 3.0, 10.0, 30.0, 100.0),
}
METHODS = (*RATES, "lbfgs")
OWN = {"sgd": ["solver.momentum=0.9"]}
AN_ITERATION = 1.4
"""Gradient equivalents that an iteration of NLCG takes at least; its runs are long enough for the budget."""


@dataclass(frozen=True)
class Problem:
    """What all methods are to minimise, and what NLCG shall reach.

    Attributes:
        job: whose data and network are taken.
        batch: as in a job file.
        iterations: of an epoch.
        budget: work at which methods are compared, in gradient equivalents.
        aim: of NLCG there, as each benchmark judges it.
        later: work at which training losses are compared too, 0 for nowhere.
        look: epochs between two evaluations of NLCG and L-BFGS at least; a fourth as often for the others.
    """

    job: str
    batch: str
    iterations: int
    budget: float
    aim: float
    later: float = 0.0
    look: float = 0.0

    @property
    def most(self) -> float:
        """Work that NLCG is given."""
        return max(self.budget, self.later)

    @property
    def title(self) -> str:
        """Job and batch."""
        return f"{self.job}, batch {self.batch.strip(chr(34))}"


Runs = dict[str, list[Run]]
"""The runs of one seed: by the name of the method, one, or one a rate."""


def trained_on_all(
    problem: Problem, args: argparse.Namespace, variants: Mapping[str, Sequence[str]] | None = None
) -> list[Runs]:
    """The runs of every seed of the command line; with ``--tune-once`` at the rates that are best on the first seed.

    Args:
        problem: what is minimised.
        args: the command line.
        variants: as for ``train``.
    """
    first = train(problem, args.seeds[0], args, RATES, variants)
    if not args.tune_once:
        return [first, *(train(problem, seed, args, RATES, variants) for seed in args.seeds[1:])]
    numbers = {method: best([first[method]], problem) for method in first}
    rates = {method: [RATES[method][number]] for method, number in numbers.items() if method in RATES}
    first = {method: [first[method][number]] for method, number in numbers.items()}
    return [first, *(train(problem, seed, args, rates, variants) for seed in args.seeds[1:])]


def train(
    problem: Problem,
    seed: int,
    args: argparse.Namespace,
    tried: Mapping[str, Sequence[float]],
    variants: Mapping[str, Sequence[str]] | None = None,
) -> Runs:
    """The runs of every method with one seed.

    Args:
        problem: what is minimised.
        seed: of data and weights.
        args: the command line, whose ``methods`` are those beside NLCG.
        tried: the rates of each method that has one.
        variants: other forms of NLCG: name -> settings. They are given as many epochs as gradient equivalents.
    """
    common = [f"run.seed={seed}", f"data.batch={problem.batch}", *args.set]

    def run(name: str, method: str, epochs: float, every: float, settings: Sequence[str] = ()) -> Run:
        given = [f"solver.name={method}", f"run.epochs={epochs:.6g}", f"run.evaluate_every={every:.6g}"]
        file = f"{Path(problem.job).stem}-{name.replace(', ', '-')}"
        told = trained(JOBS / problem.job, args.ranks, args.runs, file, args.root, [*common, *given, *settings])
        return Run(name, told["history"])

    each = 1 / problem.iterations
    often = max(each, problem.look)
    found = {"nlcg": [run("nlcg", "nlcg", math.ceil(problem.most / AN_ITERATION), often)]}
    for name, settings in (variants or {}).items():
        found[name] = [run(name, "nlcg", math.ceil(problem.most), often, settings)]
    long, seldom = args.patience * problem.most, max(each, 0.5, 4 * problem.look)
    for method, rates in tried.items():
        if method not in args.methods:
            continue
        own = OWN.get(method, [])
        found[method] = [
            run(f"{method}, {rate:g}", method, long, seldom, [f"solver.learning_rate={rate}", *own]) for rate in rates
        ]
    return found | ({"lbfgs": [run("lbfgs", "lbfgs", problem.most, often)]} if "lbfgs" in args.methods else {})


def best(runs: Sequence[Sequence[Run]], problem: Problem) -> int:
    """Number of the rate with the best mean accuracy over the seeds at the budget; ``runs`` has a list a seed."""
    means = [
        mean(run.at(problem.budget, "test_accuracy") or 0 for run in of_rate) for of_rate in zip(*runs, strict=True)
    ]
    return max(range(len(means)), key=lambda number: -math.inf if math.isnan(means[number]) else means[number])


def at_best(problem: Problem, seeds: Sequence[Runs]) -> dict[str, list[Run]]:
    """The runs of every method at its best rate: one a seed."""
    numbers = {method: best([runs[method] for runs in seeds], problem) for method in seeds[0]}
    return {method: [runs[method][number] for runs in seeds] for method, number in numbers.items()}


def others(runs: Mapping[str, Any]) -> list[str]:
    """The methods that are not NLCG in any form."""
    return [method for method in runs if method.split(",")[0] != "nlcg"]


def accuracy_of(runs: Sequence[Run], problem: Problem) -> float:
    """Mean test accuracy at the budget over the seeds."""
    return mean(run.at(problem.budget, "test_accuracy") for run in runs)


def figures(problem: Problem, seeds: Sequence[Runs]) -> list[str]:
    """A table with one line a method, at its best rate."""
    head = ["method, rate", f"% at {problem.budget:g}", "each seed", f"loss at {problem.budget:g}"]
    head += [*([f"loss at {problem.later:g}"] if problem.later else []), "best %", "seconds"]
    return table(head, [_row(problem, runs, seeds) for runs in at_best(problem, seeds).values()])


def _row(problem: Problem, runs: Sequence[Run], seeds: Sequence[Runs]) -> list[str]:
    reached = [each["nlcg"][0].at(problem.budget, "test_accuracy") for each in seeds]
    waits = [run.seconds(accuracy) for run, accuracy in zip(runs, reached, strict=True)]
    losses = [mean(run.at(work, "train_loss") for run in runs) for work in (problem.budget, problem.later) if work]
    return [
        runs[0].name,
        percent(accuracy_of(runs, problem)),
        " ".join(percent(run.at(problem.budget, "test_accuracy")) for run in runs),
        *(f"{loss:.3g}" for loss in losses),
        percent(max(row["test_accuracy"] or 0 for run in runs for row in run.history)),
        " ".join("never" if math.isinf(wait) else f"{wait:.1f}" for wait in waits),
    ]


def introduction(args: argparse.Namespace) -> str:
    """What the figures of a report are."""
    chosen = ", chosen on the first seed" if args.tune_once else ""
    return (
        f"{args.ranks} ranks, float32, seeds {' '.join(map(str, args.seeds))}. Means over the seeds; each tuned method"
        f" at the best of five rates or six by this very test accuracy{chosen}. Work: gradient equivalents. Seconds: of"
        " training, until NLCG's accuracy at the budget of the same seed."
    )


def command_line(text: str | None, patience: float, runs: str) -> argparse.ArgumentParser:
    """The options that all comparisons have.

    Args:
        text: what the script does.
        patience: of the tuned methods, by default.
        runs: where runs lie, by default.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tune-once", action="store_true", help="other seeds at the rates best on the first")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="beside NLCG")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--patience", type=float, default=patience, help="work of the tuned methods over that of NLCG")
    parser.add_argument("--runs", type=Path, default=Path(runs))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path)
    return parser


def deliver(args: argparse.Namespace, title: str, command: str, lines: Sequence[str]) -> None:
    """Print a report, and write it where that is asked for.

    Args:
        args: the command line.
        title: of the report.
        command: the script, to which the options are added.
        lines: the report.
    """
    print("\n".join(lines))
    if args.output:
        write_report(args.output, title, command + spelled(args), lines, args.ranks)
