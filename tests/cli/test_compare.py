import json
from pathlib import Path

import pytest

from hpcopt.cli.main import main
from tests.support.runs import set_status, write_run, write_start


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    return [str(write_run(tmp_path / name, epochs=n, rate=r)) for name, n, r in (("a", 4, 0.3), ("b", 8, 0.15))]


def test_json_has_runs_equal_budgets_and_differences(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *runs, "--json"]) == 0
    result = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert set(result) == {"runs", "equal", "differences"}
    assert [run["run"] for run in result["runs"]] == ["a", "b"]


def test_the_tables_put_runs_below_each_other(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *runs]) == 0
    shown = capsys.readouterr().out
    assert sum(line.split()[:1] == ["b"] for line in shown.splitlines()) == 3
    assert "Best test accuracy when all have spent the same" in shown


def test_a_run_without_evaluations_is_listed(
    tmp_path: Path, runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    start = str(write_start(tmp_path / "c"))
    assert main(["compare", *runs, start]) == 0
    assert sum(line.split()[:1] == ["c"] for line in capsys.readouterr().out.splitlines()) == 2
    assert main(["compare", start]) == 0


def test_different_data_are_named(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    set_status(Path(runs[0]), data="digits")
    assert main(["compare", *runs]) == 0
    assert "The runs differ in data: digits, mnist-5k" in capsys.readouterr().out
