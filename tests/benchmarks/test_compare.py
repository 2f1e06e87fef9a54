"""The comparison with other packages starts all methods alike, counts their work, and says where hpcopt loses."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks._runs import Run
from benchmarks.compare import compare, worker
from benchmarks.compare.baselines import BASELINES
from benchmarks.compare.compare import Entry
from benchmarks.compare.problems import METHODS, PROBLEMS, Problem
from benchmarks.compare.report import Outcome, Standing, report, verdict
from hpcopt.comm.communicator import Communicator
from hpcopt.config import parse_job
from hpcopt.train.job import PreparedJob

PROBLEM = PROBLEMS["letter"]
SMALL = Problem("digits", 1438, 2, ("model.widths=[8]", "loss.weight_decay=1e-2"))


def run(final: float, seconds: float = 4.0) -> Run:
    """One that is at ``final`` at the budget, and better before and after."""
    works = (0.0, PROBLEM.budget / 2, PROBLEM.budget, 2 * PROBLEM.budget)
    figures = (0.0, 1.0, None if math.isnan(final) else final, 1.0)
    return Run("", [
        {"gradient_equivalents": work, "seconds": seconds * work / PROBLEM.budget, "test_accuracy": figure,
         "train_loss": 1.0}
        for work, figure in zip(works, figures, strict=True)
    ])  # fmt: skip


def outcome(method: str, *figures: float) -> Outcome:
    return Outcome(method, method, None, None, {None: [run(figure) for figure in figures]})


def baseline(default: float, best: float, other: float = math.nan) -> Outcome:
    return Outcome("adam", "Adam", 1e-3, 3e-3, {1e-3: [run(default)], 3e-3: [run(best)], 1e-2: [run(other)]})


def make(comm: Communicator, folder: Path, method: str, rate: float | None, *settings: str, batch: str = "200") -> Any:
    """A run on digits of the packaged wheel; its record."""
    given = [*SMALL.common, f"data.batch={batch}", "run.device=cpu", "solver.name=sgd", "run.epochs=2", *settings]
    entry = {"directory": str(folder), "settings": given, "method": method, "rate": rate, "budget": SMALL.budget}
    worker.make(entry, comm)
    return compare.told(folder)


def test_the_distance_is_between_the_medians_over_the_seeds_at_the_budget() -> None:
    found = [outcome("nlcg", 0.2, 0.9, 0.8), outcome("newton", 0.1), baseline(0.5, 0.7)]
    standing = Standing("letter", PROBLEM, found)
    assert standing.own.method == "nlcg"
    assert standing.gap("nlcg") == pytest.approx(0.8 - 0.7)
    assert standing.gap("adam") == pytest.approx(0.5 - 0.7), "another package's method is judged untuned, too"
    assert math.isnan(standing.gap("apts"))


def test_the_search_is_all_rates_and_a_rate_that_diverged_is_not_at_its_last_good_figure() -> None:
    found = baseline(0.5, 0.7)
    assert found.search(PROBLEM) == (3 * PROBLEM.budget, pytest.approx(12.0))
    assert found.figures(PROBLEM, 1e-2) == [-math.inf]
    assert Standing("letter", PROBLEM, [outcome("nlcg", 0.6), found]).quick
    slow = Outcome("nlcg", "NLCG", None, None, {None: [run(0.6, seconds=13.0)]})
    assert not Standing("letter", PROBLEM, [slow, found]).quick


@pytest.mark.parametrize(
    ("gaps", "words"),
    [
        ([0.0] * 8 + [-0.005] * 2, "on 8 of 10 sets, at most 0.5 points behind on 10, and at most 0.50 points behind."),
        ([0.0] * 8 + [-0.006] * 2, "behind: NOT met."),
        ([0.1] * 7 + [-0.001] * 3, "behind: NOT met."),
    ],
)
def test_the_aim_counts_sets_and_bounds_the_largest_loss(gaps: list[float], words: str) -> None:
    text = verdict("NLCG", gaps)
    assert words in text
    assert text.endswith("behind: met.") == ("NOT" not in words)


def test_where_every_method_loses_the_report_says_so() -> None:
    lines = report({"letter": PROBLEM}, {"letter": [outcome("nlcg", 0.6), baseline(0.5, 0.7)]}, [0], 2)
    assert "on 0 of 1 sets, at most 0.5 points behind on 0, and at most 10.00 points behind." in "\n".join(lines)
    assert any(line.split("|")[1:3] == [" Adam   ", " 0.003, best     "] or "0.003, best" in line for line in lines)


def test_rates_that_fall_count_as_rivals_only_where_it_says_so() -> None:
    falling = replace(baseline(0.5, 0.9), method="adam-falling", title="Adam, falling rate", falls=True)
    found = [outcome("nlcg", 0.8), baseline(0.5, 0.7), falling]
    standing = Standing("letter", PROBLEM, found)
    assert standing.gap("nlcg") == pytest.approx(0.1)
    assert replace(standing, falling=True).gap("nlcg") == pytest.approx(-0.1)
    text = "\n".join(report({"letter": PROBLEM}, {"letter": found}, [0], 2))
    assert "may fall in a line over the budget" in text
    assert "at most 10.00 points behind" in text
    assert "may fall" not in "\n".join(report({"letter": PROBLEM}, {"letter": found[:2]}, [0], 2))


def test_a_falling_rate_is_nothing_where_the_work_is_done(comm: Communicator, tmp_path: Path) -> None:
    """Less work in a step than the budget: the last rate is that of the step that begins before it."""
    rates: list[float] = []

    class Watched(worker.Differentiated):
        def set_rate(self, rate: float) -> None:
            rates.append(rate)
            super().set_rate(rate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "Differentiated", Watched)
        make(comm, tmp_path / "run", "sgd-falling", 0.1, batch='"full"')
    assert rates == pytest.approx([0.1, 0.05])


def test_methods_of_hpcopt_are_given_no_option_of_their_own() -> None:
    own = {word for method in METHODS.values() for word in method.own if word.startswith("solver.")}
    assert own == {f"solver.name={name}" for name in METHODS}
    for baseline in BASELINES.values():
        assert len(baseline.rates) == 5
        assert baseline.default in baseline.rates


def test_the_sizes_of_batches_are_rules_that_fit_every_set() -> None:
    sets = [replace(PROBLEM, samples=samples) for samples in (400, 1200, 20000, 90000)]
    assert [each.usual for each in sets] == [32, 32, 256, 256]
    assert [(each.small, each.large) for each in sets] == [(8, 50), (24, 150), (400, 2500), (1800, 11250)]


def test_a_run_of_other_settings_is_never_taken_for_another(tmp_path: Path) -> None:
    args = compare.argparse.Namespace(root=tmp_path, runs=tmp_path, ranks=2)
    entry = Entry("letter", PROBLEM, "adam", 1e-3, 0)
    others = [replace(entry, rate=1e-4), replace(entry, seed=1), replace(entry, method="sgd"),
              replace(entry, problem=replace(PROBLEM, budget=3))]  # fmt: skip
    assert len({each.directory(args) for each in (entry, *others)}) == 5


@pytest.mark.parametrize("method", ["sgd", "adam", "adam-falling", "lbfgs", "lbfgs-wolfe"])
def test_a_baseline_has_the_first_weights_and_losses_of_hpcopt(comm: Communicator, tmp_path: Path, method: str) -> None:
    told = make(comm, tmp_path / "run", method, BASELINES[method].default, "run.seed=3")
    prepared = PreparedJob(parse_job("", [*SMALL.common, "run.seed=3"]), comm)
    assert told["history"][0]["train_loss"] == prepared.run(None).history[0]["train_loss"]


def test_a_baseline_makes_the_steps_of_the_same_method_of_hpcopt(comm: Communicator, tmp_path: Path) -> None:
    """Same batches, same loss with its decay, same work: torch's Adam and that of hpcopt agree."""
    given = ("run.precision=float64", "solver.name=adam", "run.evaluate_every=0.125")
    own = make(comm, tmp_path / "hpcopt", "hpcopt", None, *given)["history"]
    other = make(comm, tmp_path / "torch", "adam", 1e-3, *given)["history"]
    for column in ("gradient_equivalents", "train_loss", "test_accuracy"):
        assert [row[column] for row in other] == pytest.approx([row[column] for row in own], rel=1e-9)
    assert len(other) > 5


def test_a_value_that_is_already_there_is_not_counted_again(comm: Communicator, tmp_path: Path) -> None:
    """An iteration of L-BFGS without a search needs one gradient, though a step of torch begins with its own."""
    told = make(comm, tmp_path / "run", "lbfgs", 1.0, batch='"full"')
    assert told["work"]["gradient_equivalents"] == SMALL.budget == len(told["history"]) - 1


def test_a_run_that_diverges_ends_and_says_so(comm: Communicator, tmp_path: Path) -> None:
    told = make(comm, tmp_path / "run", "sgd", 1e30)
    assert told["status"] == "diverged"
    assert told["history"][-1]["train_loss"] is None


def test_what_is_finished_is_not_made_again(comm: Communicator, tmp_path: Path) -> None:
    make(comm, tmp_path / "run", "sgd", 0.1)
    record = tmp_path / "run" / "told.json"
    record.write_text(json.dumps({"marked": True}))
    assert make(comm, tmp_path / "run", "sgd", 0.1) == {"marked": True}
