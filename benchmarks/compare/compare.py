"""Every method of hpcopt with nothing tuned beside what a user would take instead, on ten sets.

    python benchmarks/compare/compare.py --root DIR [--sets letter usps] [--seeds 0 1 2] [--methods nlcg adam]

All methods train the same network from the same first weights on the same samples and minimise the same loss, but
slimtrain, whose loss is squared on classes too, and torch-levenberg-marquardt, which has no weight decay. They are
compared at equal work: a gradient of all samples counts 1, a value a third. Methods of other packages
(baselines.py) run at their default learning rate and at four others with the first seed; with further seeds at the
default and at the rate that was best on the test set. Those of hpcopt run as they are, on batches of a size that is a
rule for all sets (problems.py). Seconds are of training, without evaluations.

Runs stay under --runs; one that is finished is read, not repeated, so that the command may be stopped and given
again. DIR holds the sets' files (hpcopt data list). The other packages: ``pip install
ncg-optimizer==0.2.2 torch-levenberg-marquardt==1.2.3``.
``--output FILE.md`` writes the report with command, machine and versions, and a picture a set beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, write_report
from benchmarks._runs import Run, directory_of, finished, told
from benchmarks.compare.baselines import BASELINES
from benchmarks.compare.picture import draw
from benchmarks.compare.problems import METHODS, PROBLEMS, Problem
from benchmarks.compare.report import Outcome, report

WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Entry:
    """A run: of which set, by which method, at which rate (None: a method of hpcopt) and with which seed."""

    name: str
    problem: Problem
    method: str
    rate: float | None
    seed: int

    def settings(self, root: Path) -> list[str]:
        """The job, with nothing but data, network, loss, method, length and batch."""
        common = [*self.problem.common, f"data.root={root.resolve()}", f"run.seed={self.seed}", "run.device=cpu"]
        if self.rate is None:
            return [*common, *METHODS[self.method].settings(self.problem)]
        batch = '"full"' if BASELINES[self.method].full else self.problem.usual
        return [*common, "solver.name=sgd", f"data.batch={batch}"]

    def directory(self, args: argparse.Namespace) -> Path:
        """Where the run lies."""
        rate = "" if self.rate is None else f"-{self.rate:g}"
        facts = [*self.settings(args.root), f"{self.method}{rate}", str(self.problem.budget)]
        return directory_of(args.runs, f"{self.name}-{self.method}{rate}-{args.ranks}-{self.seed}", facts)

    def ranks(self, most: int) -> int:
        """Processes that it takes of so many."""
        alone = self.rate is not None and BASELINES[self.method].alone
        return 1 if alone else most


def train(entries: Sequence[Entry], args: argparse.Namespace) -> None:
    """Make those runs that are not there, in processes of one thread or in one of as many threads."""
    for ranks in sorted({args.ranks, 1}, reverse=True):
        missing = [e for e in entries if e.ranks(args.ranks) == ranks and not finished(e.directory(args))]
        if not missing:
            continue
        plan = [
            {
                "directory": str(entry.directory(args)),
                "settings": entry.settings(args.root),
                "method": entry.method,
                "rate": entry.rate,
                "budget": entry.problem.budget,
            }
            for entry in missing
        ]
        file = args.runs / f"plan-{os.getpid()}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(plan), encoding="utf-8")
        threads = {"OMP_NUM_THREADS": str(args.ranks // ranks)}
        command = ["mpirun", "-n", str(ranks), sys.executable, str(WORKER), str(file)]
        status = subprocess.run(command, env=os.environ | threads, check=False).returncode
        file.unlink()
        if status:
            raise SystemExit(f"{' '.join(command)} ended with status {status}")


def outcomes(name: str, problem: Problem, args: argparse.Namespace) -> list[Outcome]:
    """All runs of a set: those of the first seed, from which rates are chosen, then those of the others."""
    given = [m for m in args.methods if m in METHODS or problem.modest or not BASELINES[m].alone]
    first = [
        Entry(name, problem, method, rate, args.seeds[0])
        for method in given
        for rate in (BASELINES[method].rates if method in BASELINES else (None,))
    ]
    train(first, args)
    found = [_outcome(method, [entry for entry in first if entry.method == method], args) for method in given]
    chosen = [
        entry for outcome, method in zip(found, given, strict=True) for entry in first
        if entry.method == method and entry.rate in (outcome.default, outcome.best)
    ]  # fmt: skip
    others = [replace(entry, seed=seed) for seed in args.seeds[1:] for entry in chosen]
    train(others, args)
    for outcome, method in zip(found, given, strict=True):
        for entry in others:
            if entry.method == method:
                outcome.runs[entry.rate].append(_run(entry, args))
    return found


def _outcome(method: str, entries: Sequence[Entry], args: argparse.Namespace) -> Outcome:
    """The runs of the first seed, and the rate with the best figure."""
    runs = {entry.rate: [_run(entry, args)] for entry in entries}
    if method in METHODS:
        return Outcome(method, METHODS[method].title, None, None, runs)
    problem = entries[0].problem
    reached = {rate: run.at(problem.budget, problem.figure) for rate, (run,) in runs.items()}
    best = max(reached, key=lambda rate: -math.inf if math.isnan(reached[rate]) else reached[rate])
    baseline = BASELINES[method]
    return Outcome(method, baseline.title, baseline.default, best, runs, baseline.falls)


def _run(entry: Entry, args: argparse.Namespace) -> Run:
    return Run(entry.method, told(entry.directory(args))["history"])


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = [*METHODS, *BASELINES]
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=everything, default=everything)
    parser.add_argument("--budget", type=float, help="gradient equivalents, in place of those of each set")
    parser.add_argument("--ranks", type=int, default=2, help="processes; the same figures but for APTS and seconds")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark-compare"))
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    """Train on every set and report."""
    args = arguments()
    problems = {
        name: replace(PROBLEMS[name], budget=args.budget) if args.budget else PROBLEMS[name] for name in args.sets
    }
    found = {name: outcomes(name, problem, args) for name, problem in problems.items()}
    lines = report(problems, found, args.seeds, args.ranks)
    print("\n".join(lines))
    if args.output:
        lines += ["", "## Pictures", ""]
        for name, problem in problems.items():
            draw(args.output.with_suffix("") / f"{name}.png", name, problem, found[name])
            lines.append(f"- [{name}]({args.output.stem}/{name}.png)")
        command = f"python benchmarks/compare/compare.py{spelled(args)}"
        write_report(args.output, "With nothing tuned, beside what a user would take instead", command, lines)


if __name__ == "__main__":
    main()
