import json
from pathlib import Path

import pytest

from hpcopt.analysis.history import open_run
from hpcopt.analysis.summary import summary
from hpcopt.cli.main import main
from tests.support.runs import set_status, write_run, write_start


def test_json_is_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path / "a")
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == summary(open_run(path))


def test_the_tables_show_status_figures_and_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(write_run(tmp_path / "a"))]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = {line.split()[0]: line for line in lines if line.strip()}
    assert "finished: The requested number" in shown["status"]
    assert "12,730 parameters" in shown["model"]
    assert shown["best"].split()[1:] == ["7", "0.3258", "88.22", "%", "0.3584", "87.22", "%"]
    assert "32 accepted, 8 rejected" in shown["steps"]
    assert "43.33 gradient equivalents" in shown["work"]
    assert "39.1 KiB" in shown["communication"]


def test_where_the_time_went_is_shown_as_far_as_it_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spent = {"all": 9.0, "evaluation": 2.0, "record": 0.5, "checkpoints": 1.0}
    main(["inspect", str(write_run(tmp_path / "a", epochs=3, others=0.005, summary={"time": spent}))])
    shown = " ".join(capsys.readouterr().out.split())
    assert "9 s of it 2 s evaluation, 0.5 s record, 1 s checkpoints" in shown
    assert "0.356 s computing, 0.024 s communication, 0.02 s waiting for others means" in shown
    main(["inspect", str(write_run(tmp_path / "b"))])
    shown = capsys.readouterr().out
    assert "computing" not in shown
    assert "of it" not in shown


def inspected(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The line about local iterations, without its label; empty when there is none."""
    assert main(["inspect", str(path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("local iterations")]
    return "".join(lines).removeprefix("local iterations").strip()


def test_local_iterations_are_shown_where_the_ranks_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = write_run(tmp_path / "a", ranks=3, local_iterations=(5, 1, 5))
    assert inspected(some, capsys) == "5, 1, 5  mean of a phase on each rank"
    many = write_run(tmp_path / "b", ranks=40, local_iterations=(5,) * 30 + (2,) + (4,) * 9)
    assert inspected(many, capsys) == "2 (rank 30) to 5 (rank 0)  mean of a phase"
    assert inspected(write_run(tmp_path / "c", ranks=3, local_iterations=(5, 5, 5)), capsys) == ""
    assert inspected(write_run(tmp_path / "d"), capsys) == ""


def test_history_shows_every_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_run(tmp_path / "a", epochs=10, radius=False))
    main(["inspect", path])
    short = capsys.readouterr().out
    main(["inspect", path, "--history"])
    long = capsys.readouterr().out
    assert len(long.splitlines()) >= len(short.splitlines()) + 11
    assert "radius" not in long, "a column in which nothing is known is left out"


def test_a_run_that_has_just_started_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(write_start(tmp_path / "a")), "--history"]) == 0
    assert "0 iterations" in capsys.readouterr().out


def test_words_of_the_user_are_not_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path / "a[b]", epochs=1)
    set_status(path, model="my[/bold]model")
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "a[b]" in shown
    assert "my[/bold]model" in shown


def test_a_missing_run_ends_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("hpcopt: error: There is no run directory")
