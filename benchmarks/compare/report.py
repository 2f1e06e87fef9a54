"""The tables of the comparison: one a set, and how far every method is from the best tuned one of other packages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from benchmarks._report import table
from benchmarks._runs import Run
from benchmarks.compare.problems import AIM_BEHIND, AIM_SETS, PROBLEMS, RULE, Problem, rule_of_thumb


@dataclass(frozen=True)
class Outcome:
    """A method on a set.

    Attributes:
        method: its key.
        title: as it stands in tables.
        default: its rate without tuning; None for a method of hpcopt.
        best: the rate that was best with the first seed; None for a method of hpcopt.
        runs: by rate, one a seed; of other rates than ``default`` and ``best``, of the first seed only.
        falls: whether that rate falls to nothing over the budget.
    """

    method: str
    title: str
    default: float | None
    best: float | None
    runs: dict[float | None, list[Run]]
    falls: bool = False

    @property
    def tuned(self) -> bool:
        """Whether it is of another package, with rates to choose."""
        return self.best is not None

    def figures(self, problem: Problem, rate: float | None) -> list[float]:
        """What was reached at the budget at a rate, for each seed; minus infinity where the run diverged."""
        found = [run.at(problem.budget, problem.figure) for run in self.runs[rate]]
        return [-math.inf if math.isnan(figure) else figure for figure in found]

    def reached(self, problem: Problem, rate: float | None) -> float:
        """The median over the seeds."""
        return median(self.figures(problem, rate))

    def seconds(self, problem: Problem, rate: float | None) -> float:
        """Seconds of training until the budget, the median over the seeds."""
        return median(run.at(problem.budget, "seconds") for run in self.runs[rate])

    def search(self, problem: Problem) -> tuple[float, float]:
        """Gradient equivalents and seconds of all rates with the first seed."""
        runs = [found[0] for found in self.runs.values()]
        gradients, seconds = (
            sum(run.at(problem.budget, what) for run in runs) for what in ("gradient_equivalents", "seconds")
        )
        return gradients, seconds


def report(
    problems: Mapping[str, Problem], found: Mapping[str, Sequence[Outcome]], seeds: Sequence[int], ranks: int
) -> list[str]:
    """The summary, then a table a set."""
    lines = [
        f"Processes of one thread: {ranks} (torch-levenberg-marquardt: one process of {ranks} threads); float32; seeds"
        f" {' '.join(map(str, seeds))}:"
        " medians, and the range over the seeds. Test accuracy, or explained variance of the test set for airfoil, cdr"
        " and california, both in %, at the set's budget of gradient equivalents (a gradient of all samples; a value is"
        " a third). Methods of other packages at their default learning rate, and at the best of five by this very"
        " figure with the first seed; search: what these five runs took. Methods of hpcopt have no rate chosen.",
        "",
        "## How far from the best tuned method",
        "",
        *summary(problems, found),
    ]
    for name, problem in problems.items():
        lines += ["", f"## {name}, at {problem.budget:g} gradient equivalents", ""]
        lines += [
            f"{problem.source}: {', '.join(problem.settings)}. Batches of {problem.usual} samples; those of NLCG and"
            f" slimTrain of {problem.small}, of Newton and APTS of {problem.large}, of trust region and L-BFGS full.",
            "",
        ]
        lines += rows(problem, found[name])
    return lines


@dataclass(frozen=True)
class Standing:
    """Where the methods of hpcopt stand on a set.

    Attributes:
        name: the set's.
        problem: the set.
        found: all methods that were run.
        falling: whether methods count as rivals whose rate falls over the budget.
    """

    name: str
    problem: Problem
    found: Sequence[Outcome]
    falling: bool = False

    @property
    def rival(self) -> Outcome:
        """The method of another package that comes farthest at its best rate."""
        tuned = [outcome for outcome in self.found if outcome.tuned and (self.falling or not outcome.falls)]
        return max(tuned, key=lambda outcome: outcome.reached(self.problem, outcome.best))

    @property
    def own(self) -> Outcome:
        """The method of hpcopt that comes farthest."""
        untuned = [outcome for outcome in self.found if not outcome.tuned]
        return max(untuned, key=lambda outcome: outcome.reached(self.problem, None))

    @property
    def quick(self) -> bool:
        """Whether it took no more seconds than the search for the rate of the other."""
        return self.own.seconds(self.problem, None) <= self.rival.search(self.problem)[1]

    def gap(self, method: str) -> float:
        """How far a method is ahead of the best tuned one with nothing tuned; NaN where it was not run."""
        rival = self.rival
        own = next((outcome for outcome in self.found if outcome.method == method), None)
        if own is None:
            return math.nan
        return own.reached(self.problem, own.default) - rival.reached(self.problem, rival.best)

    def line(self) -> list[str]:
        """Of the first table."""
        rival, own, problem = self.rival, self.own, self.problem
        gradients, seconds = rival.search(problem)
        return [
            self.name,
            f"{rival.title}, {rival.best:g}",
            in_percent(rival.reached(problem, rival.best)),
            f"{gradients:.0f}",
            f"{seconds:.1f}",
            own.title,
            in_percent(own.reached(problem, None)),
            f"{100 * self.gap(own.method):+.2f}",
            f"{own.seconds(problem, None):.1f}",
        ]


def summary(problems: Mapping[str, Problem], found: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """The best method of either kind on every set, the distances of all methods, and whether the aim is met."""
    both = [name for name in problems if {outcome.tuned for outcome in found[name]} == {True, False}]
    if not both:
        return ["There is nothing to compare: give methods of both kinds."]
    standings = [Standing(name, problems[name], found[name]) for name in both]
    head = ["set", "best tuned", "%", "search, gradients", "search, s", "best untuned", "%", "gap", "s"]
    by_rule = [gap for s in standings if not math.isnan(gap := s.gap(rule_of_thumb(s.problem)))]
    return [
        *table(head, [standing.line() for standing in standings]),
        "",
        verdict("The best untuned method of hpcopt", [standing.gap(standing.own.method) for standing in standings]),
        f"It took no more seconds than that method's search on {sum(s.quick for s in standings)} of {len(both)} sets.",
        *([verdict(f"By the rule of thumb, {RULE}, the one that it names", by_rule)] if by_rule else []),
        "",
        *_falling(standings),
        "The distance of every method from the best tuned one, in points; of other packages at the default rate:",
        "",
        *distances(standings),
    ]


def _falling(standings: Sequence[Standing]) -> list[str]:
    """The same where the rates of others fall, too, if such methods were run on every set."""
    if not all(any(outcome.falls for outcome in standing.found) for standing in standings):
        return []
    harder = [replace(standing, falling=True) for standing in standings]
    gaps = [standing.gap(standing.own.method) for standing in harder]
    lines = [[s.name, s.rival.title, in_percent(s.rival.reached(s.problem, s.rival.best)), f"{100 * gap:+.2f}"]
             for s, gap in zip(harder, gaps, strict=True)]  # fmt: skip
    return [
        "slimTrain's rate falls over the run. Where those of SGD and Adam may fall in a line over the budget, too:",
        "",
        *table(["set", "best tuned", "%", "gap"], lines),
        "",
        verdict("Then the best untuned method of hpcopt", gaps, aim=False),
        "",
    ]


def verdict(who: str, gaps: Sequence[float], *, aim: bool = True) -> str:
    """On how many sets it is at or ahead of the best tuned method, its largest distance behind, and the aim."""
    ahead, near = (sum(gap >= least for gap in gaps) for least in (0, -AIM_BEHIND))
    behind = max(0.0, -min(gaps))
    met = "met" if ahead >= AIM_SETS and behind <= AIM_BEHIND else "NOT met"
    points = f"{100 * AIM_BEHIND:g} points"
    judged = aim and len(gaps) == len(PROBLEMS)
    return (
        f"{who} is at or ahead of the best tuned method on {ahead} of {len(gaps)} sets, at most {points} behind on"
        f" {near}, and at most {100 * behind:.2f} points behind."
        + (f" Aim, {AIM_SETS} of 10 and nowhere more than {points} behind: {met}." if judged else "")
    )


def distances(standings: Sequence[Standing]) -> list[str]:
    """One line a method, one column a set."""
    methods = {outcome.method: outcome.title for standing in standings for outcome in standing.found}
    lines = [[title, *(_points(standing.gap(method)) for standing in standings)] for method, title in methods.items()]
    return table(["method, untuned", *(standing.name for standing in standings)], lines)


def _points(gap: float) -> str:
    return "-" if math.isnan(gap) else "diverged" if math.isinf(gap) else f"{100 * gap:+.2f}"


def rows(problem: Problem, found: Sequence[Outcome]) -> list[str]:
    """The table of a set: one line a method of hpcopt, two for another one."""
    head = ["method", "rate", "%", "range", "train loss", "best %", "s", "search, gradients", "search, s"]
    lines = []
    for outcome in found:
        if not outcome.tuned:
            lines.append([outcome.title, "-", *_figures(problem, outcome, None), "-", "-"])
            continue
        cost = [f"{part:.{digits}f}" for digits, part in enumerate(outcome.search(problem))]
        lines.append(
            [outcome.title, f"{outcome.default:g}, default", *_figures(problem, outcome, outcome.default), "-", "-"]
        )
        lines.append([outcome.title, f"{outcome.best:g}, best", *_figures(problem, outcome, outcome.best), *cost])
    return table(head, lines)


def _figures(problem: Problem, outcome: Outcome, rate: float | None) -> list[str]:
    runs, reached = outcome.runs[rate], outcome.figures(problem, rate)
    losses = [run.at(problem.budget, "train_loss") for run in runs]
    inside = [row[problem.figure] for run in runs for row in run.history
              if row["gradient_equivalents"] <= problem.budget and row[problem.figure] is not None]  # fmt: skip
    return [
        in_percent(median(reached)),
        f"{in_percent(min(reached))} to {in_percent(max(reached))}",
        f"{median(losses):.3g}",
        in_percent(max(inside)),
        f"{outcome.seconds(problem, rate):.1f}",
    ]


def in_percent(figure: float) -> str:
    """A fraction in percent, or that there is none."""
    return f"{100 * figure:.2f}" if math.isfinite(figure) else "diverged"
