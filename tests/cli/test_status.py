"""``hpcopt status``: one run in full, several in a table, and what cannot be read beside the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcopt.analysis.history import open_run
from hpcopt.analysis.status import standing
from hpcopt.cli import status as command
from hpcopt.cli.main import main
from hpcopt.train.run.directory import METRICS
from hpcopt.train.run.halt import write_halt
from tests.support.runs import set_status, write_live, write_run

PLANNED = {"iterations": 100, "epochs": None, "seconds": None}


@pytest.fixture
def live(tmp_path: Path) -> Path:
    """A run that is going on, in this process."""
    return write_live(tmp_path / "live", planned=PLANNED)


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["status", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_one_run_is_shown_in_full(live: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_halt(live, after_checkpoint=True)
    lines = {line.split("  ")[0]: " ".join(line.split()) for line in shown(capsys, live).splitlines()}
    assert lines["status"].startswith("status running process")
    assert lines["done"] == "done iteration 40 of 100, epoch 10"
    assert "test accuracy" in lines["loss"]
    assert lines["rate"].startswith("rate 10 iterations a second of training; 7 s to go, until 20")
    assert lines["slowest rank"] == "slowest rank 0 the others wait 12% of their time"
    assert lines["note"].startswith("note It was asked to end when it is next saved by")


def test_several_runs_stand_in_one_table(live: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_run(tmp_path / "done")
    dead = write_run(tmp_path / "dead", status="running")
    lines = [line.split() for line in shown(capsys, live, other, dead).splitlines()]
    assert next(line for line in lines if line[:1] == ["live"])[1:4] == ["running", "40/100", "10"]
    assert next(line for line in lines if line[:1] == ["done"])[1:4] == ["finished", "40", "10"]
    assert ["dead:", "The", "process", "ended"] in [line[:4] for line in lines]


def test_json_has_what_is_known_of_each(live: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = json.loads(shown(capsys, live, "--json"), parse_constant=pytest.fail)["runs"]
    assert run.keys() == standing(open_run(live)).keys()
    assert run["planned"] == PLANNED


def test_what_cannot_be_read_keeps_no_other_from_being_shown(
    live: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    damaged = write_run(tmp_path / "damaged")
    (damaged / METRICS).write_bytes(b"no record")
    arguments = ["status", str(tmp_path / "empty"), str(damaged), str(live)]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert "iteration 40 of 100" in printed.out
    assert ["holds no run" in printed.err, "damaged" in printed.err] == [True, True]
    assert main([*arguments, "--json"]) == 2
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [("error" in run, Path(run["path"]).name) for run in runs] == [
        (True, "empty"),
        (True, "damaged"),
        (False, "live"),
    ]


def test_it_is_watched_until_nothing_runs(
    live: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            set_status(live, status="finished")

    monkeypatch.setattr(command.time, "sleep", sleep)
    assert shown(capsys, live, "--watch", "7").count("iteration 40 of") == 3
    assert pauses == [7.0, 7.0]
    assert [main(["status", str(live), "--watch", pause]) for pause in ("0", "nan", "inf")] == [2, 2, 2]


def test_words_of_the_user_are_not_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path / "a[b]", epochs=1)
    set_status(path, status="failed", stop_reason="no [/bold] end")
    assert "no [/bold] end" in (text := shown(capsys, path))
    assert "a[b]" in text
