import json
import subprocess
import sys
from pathlib import Path

import pytest

import hpcopt
from hpcopt.analysis.doctor import Finding, Report
from hpcopt.cli import doctor as command
from hpcopt.cli.main import main

ROOT = Path(hpcopt.__file__).parents[1]

SOUND = Report([Finding("MPI", "green", "Some MPI")], {"ranks": []})
BROKEN = Report([Finding("MPI", "red", "no [MPI]", "install one")], {"ranks": []})


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_it_examines_this_process(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert status == (0 if report["healthy"] else 2)
    assert len(report["ranks"]) == 1
    assert {"topic", "level", "text", "advice"} == set(report["findings"][0])


@pytest.mark.parametrize(("report", "status"), [(SOUND, 0), (BROKEN, 2), (None, 0)])
def test_the_status_is_2_when_something_will_not_work(
    report: Report | None, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "examine", lambda directory: report)
    assert main(["doctor"]) == status
    shown = capsys.readouterr().out
    assert (shown == "") == (report is None)
    if report is BROKEN:
        assert [words in shown for words in ("FAIL", "no [MPI]", "install one")] == [True] * 3


def test_the_directory_of_runs_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scratch").mkdir()
    main(["doctor", "--json", "--run-dir", "scratch/runs/a"])
    assert json.loads(capsys.readouterr().out)["disk"]["path"] == str(tmp_path / "scratch")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_of_processes_that_did_not_find_each_other_the_first_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "examine", lambda directory: BROKEN)
    monkeypatch.setenv("PMI_RANK", "1")
    assert main(["doctor"]) == 2
    assert capsys.readouterr().out == ""


def test_a_reader_that_leaves_is_no_bug(tmp_path: Path) -> None:
    command = f"{sys.executable} -m hpcopt doctor --json | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.stderr == ""


def test_a_measurement_is_kept_where_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hpcopt.analysis.measure.measure", lambda comm: {"format": 1, "ranks": comm.size})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    main(["doctor", "--json", "--measure", "--output", "here/m.json"])
    assert json.loads(capsys.readouterr().out)["measurement"] == "here/m.json"
    assert json.loads(Path("here/m.json").read_text())["ranks"] == 1
    main(["doctor", "--measure"])
    (kept,) = (tmp_path / "cache" / "hpcopt").glob("measured-*.json")
    assert str(kept) in capsys.readouterr().out
    assert main(["doctor", "--output", "b.json"]) == 2
    assert "give --measure" in capsys.readouterr().err
