"""The benchmark of NLCG compares at equal work and by seconds, and nothing but the rates of the others is tuned."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks._runs import JOBS
from benchmarks.nlcg import _comparison
from benchmarks.nlcg._comparison import RATES, Problem, Run, best, figures, train, trained_on_all
from benchmarks.nlcg.accuracy import LINE_SEARCH, PROBLEMS, arguments, report, verdicts
from hpcopt.config import parse_job

MNIST = PROBLEMS["mnist"]


def run(name: str, final: float, work: float = 40.0, seconds: float = 80.0, loss: float = 0.1) -> Run:
    """A run whose accuracy rises from 0 to ``final`` in four evaluations at even distances."""
    parts = [k / 4 for k in range(5)]
    history = [
        {"gradient_equivalents": p * work, "seconds": p * seconds, "test_accuracy": p * final, "train_loss": loss}
        for p in parts
    ]
    return Run(name, history)


def seed(nlcg: float, *adam: float) -> dict[str, list[Run]]:
    """NLCG with all its work done at 10 and after 20 seconds, and Adam at some rates."""
    return {"nlcg": [run("nlcg", nlcg, 10.0, 20.0)], "adam": [run(f"adam, {a}", a) for a in adam]}


def test_a_figure_is_that_of_the_last_evaluation_before() -> None:
    found = run("adam", 0.8)
    assert found.at(10.0, "test_accuracy") == pytest.approx(0.2)
    assert found.at(19.9, "test_accuracy") == pytest.approx(0.2)
    assert found.at(1e3, "test_accuracy") == pytest.approx(0.8)
    assert found.seconds(0.4) == 40.0
    assert math.isinf(found.seconds(0.9))


def test_a_run_that_diverged_has_no_figure_and_is_not_the_best() -> None:
    diverged = Run("adam, 1", [*run("", 0.9).history[:1], {**run("", 0.9).history[1], "test_accuracy": None}])
    assert math.isnan(diverged.at(10.0, "test_accuracy"))
    assert best([[diverged, run("adam, 2", 0.1)]], MNIST) == 1


def test_the_best_rate_is_that_of_the_mean_over_the_seeds_at_the_budget() -> None:
    first, second = [run("a", 0.4), run("b", 0.8)], [run("a", 0.9), run("b", 0.8)]
    assert best([first, second], MNIST) == 1
    last = figures(MNIST, [seed(0.9, 0.4, 0.8), seed(0.9, 0.9, 0.8)])[-1]
    assert [cell.strip() for cell in last.split("|")][1:4] == ["adam, 0.8", "20.00", "20.00 20.00"]


@pytest.mark.parametrize(("nlcg", "adam", "expected"), [(0.99, 0.98, "never"), (0.5, 0.8, "0.33"), (0.2, 0.8, "1.00")])
def test_seconds_are_compared_at_the_accuracy_that_nlcg_reaches(nlcg: float, adam: float, expected: str) -> None:
    """Adam is there never, after 60 and after 20 seconds."""
    lines = verdicts(MNIST, [seed(nlcg, 0.01, adam)])
    assert lines[0].endswith(f"(aim: 98.20): {'met' if nlcg > 0.982 else 'NOT met'}")
    assert f"does not get there: {expected} " in lines[-1]
    assert lines[-1].endswith(": met")


def test_the_training_loss_is_compared_with_the_lowest_of_all_rates() -> None:
    runs = {"nlcg": [run("nlcg", 0.99, 60.0, loss=1e-3)], "adam": [run("a", 0.9, loss=0.1), run("b", 0.5, loss=0.009)]}
    runs["nlcg, hager_zhang"] = [run("nlcg, hager_zhang", 0.99, loss=1e-9)]
    assert "- training loss 0.111 of the lowest other (aim: 0.1): NOT met" in verdicts(PROBLEMS["full"], [runs])


def test_all_methods_get_the_same_problem_and_nlcg_nothing_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def trained(job: Path, ranks: int, parent: Path, name: str, root: str, settings: Any) -> dict[str, Any]:
        seen.append(settings)
        return {"history": run(name, 0.5).history}

    monkeypatch.setattr(_comparison, "trained", trained)
    found = train(MNIST, 3, arguments(["--root", "data", "--set", "loss.weight_decay=1e-3"]), RATES, LINE_SEARCH)
    one = dict.fromkeys(["nlcg", "nlcg, hager_zhang", "lbfgs"], 1)
    assert {key: len(runs) for key, runs in found.items()} == one | {name: len(rates) for name, rates in RATES.items()}
    assert min(map(len, RATES.values())) >= 5
    assert {tuple(settings[:3]) for settings in seen} == {("run.seed=3", "data.batch=10000", "loss.weight_decay=1e-3")}
    own = [[key for key in settings if key.startswith("solver.")] for settings in seen]
    assert own[0] == ["solver.name=nlcg"]
    assert own[1] == ["solver.name=nlcg", "solver.step_rule=hager_zhang"]
    assert own[-1] == ["solver.name=lbfgs"]
    assert all(any(key.startswith("solver.learning_rate=") for key in keys) for keys in own[2:-1])


@pytest.mark.parametrize(("words", "runs"), [([], len(RATES["adam"])), (["--tune-once"], 1)])
def test_tuned_once_the_rate_that_is_best_on_the_first_seed_is_taken_for_the_others(
    words: list[str], runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(job: Path, ranks: int, parent: Path, name: str, root: str, settings: Any) -> dict[str, Any]:
        leads = ("run.seed=0" in settings) == name.endswith("-0.001")
        return {"history": run(name, 0.9 if leads else 0.5).history}

    monkeypatch.setattr(_comparison, "trained", trained)
    found = trained_on_all(MNIST, arguments(["--root", "data", "--methods", "adam", *words]))
    assert [len(each["adam"]) for each in found] == [runs] * 3
    assert not words or {each["adam"][0].name for each in found} == {"adam, 0.001"}


def test_the_report_has_a_table_for_each_problem() -> None:
    args = arguments(["--root", "data", "--seeds", "0"])
    text = "\n".join(report({name: [seed(0.99, 0.5)] for name in PROBLEMS}, args))
    assert text.count("| nlcg ") == text.count("| adam, 0.5 ") == len(PROBLEMS)
    assert "cifar10-nlcg.toml, batch 10000" in text


def test_only_where_a_later_loss_is_compared_is_there_a_column_of_it() -> None:
    heads = [figures(PROBLEMS[name], [seed(0.99, 0.5)])[0] for name in ("mnist", "full")]
    assert [head.count("loss at") for head in heads] == [1, 2]


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_the_job_of_a_problem_has_no_option_of_the_method(problem: Problem) -> None:
    job = parse_job((JOBS / problem.job).read_text())
    assert (job.solver.name, job.solver.options) == ("nlcg", {})
