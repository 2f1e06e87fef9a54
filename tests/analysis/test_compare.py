import json
from pathlib import Path

import pytest

from hpcopt.analysis.compare import compare, labels_of
from hpcopt.analysis.history import open_run
from tests.support.runs import set_status, write_run, write_start


def test_all_runs_have_the_same_columns(tmp_path: Path) -> None:
    runs = [open_run(write_run(tmp_path / name, epochs=n)) for name, n in (("a", 5), ("b", 10))]
    rows = compare([*runs, open_run(write_start(tmp_path / "c"))])["runs"]
    assert [row["run"] for row in rows] == ["a", "b", "c"]
    assert len({tuple(row) for row in rows}) == 1
    assert {"epochs", "gradient_equivalents", "seconds", "bytes", "final", "best"} <= set(rows[0])


def test_at_equal_budgets_only_what_all_have_spent_counts(tmp_path: Path) -> None:
    slow = open_run(write_run(tmp_path / "slow", epochs=20, rate=0.15))
    fast = open_run(write_run(tmp_path / "fast", epochs=4))
    equal = compare([slow, fast])["equal"]
    assert equal["epochs"]["budget"] == 4.0
    assert equal["gradient_equivalents"]["budget"] == pytest.approx(4 * (4 / 3 + 3))
    assert equal["seconds"]["budget"] == pytest.approx(1.6)
    assert equal["bytes"]["budget"] == 16000
    for budget in equal.values():
        best = {row["run"]: row for row in budget["runs"]}
        assert best["slow"]["epoch"] == best["fast"]["epoch"] == 4.0
        assert best["slow"]["test_accuracy"] == slow.evaluations.test_accuracy[4]


def test_the_result_is_valid_json(tmp_path: Path) -> None:
    runs = [open_run(write_run(tmp_path / "a", task="regression")), open_run(write_start(tmp_path / "b"))]
    result = compare(runs)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_runs_that_have_not_started_have_no_equal_budgets(tmp_path: Path) -> None:
    assert compare([open_run(write_start(tmp_path / "a"))])["equal"] == {}


def test_what_makes_a_comparison_unfair_is_named(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, epochs=1) for name in "abc"]
    assert compare([open_run(path) for path in paths])["differences"] == {}
    set_status(paths[1], data="digits")
    assert compare([open_run(path) for path in paths])["differences"] == {"data": ["mnist-5k", "digits"]}


def test_runs_of_the_same_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    paths = [tmp_path / "x" / "sgd", tmp_path / "y" / "sgd", tmp_path / "y" / "adam"]
    assert labels_of([open_run(write_run(path, epochs=1)) for path in paths]) == ["x/sgd", "y/sgd", "y/adam"]
    assert labels_of([open_run(paths[0]), open_run(paths[2])]) == ["sgd", "adam"]
    assert labels_of([open_run(paths[0]), open_run(paths[0])]) == ["sgd", "sgd"]
