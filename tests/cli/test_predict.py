from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcopt.cli.main import main
from tests.support.measurements import written

JOB = '[data]\nsource = "digits"\nlimit = 100\n[model]\nwidths = [8]\n[solver]\nname = "sgd"\n'


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "a.toml"
    path.write_text(JOB)
    return str(path)


def test_the_table_has_a_row_a_number_of_ranks_and_says_which_measurement(
    job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = written(tmp_path / "m.json")
    assert main(["predict", job, "--ranks", "2,1024", "--measured", str(measured)]) == 0
    shown = capsys.readouterr().out
    rows = [line.split()[:2] for line in shown.splitlines() if line.split()[:1] in (["2"], ["1,024"])]
    assert rows == [["2", "1"], ["1,024", "512"]]
    assert [words in shown for words in (str(measured), "Rabenseifner", "more than 2 ranks were not measured")] == [
        True
    ] * 3


def test_json_has_every_kind_of_call(job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "cache" / "hpcopt" / "measured-other.json")
    words = ["--ranks", "4", "--ranks-per-host", "4", "--set", "solver.name=adam", "--json"]
    assert main(["predict", job, *words]) == 0
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert told["machine"]["ranks_per_host"] == 4
    assert told["machine"]["measurement"].endswith("measured-other.json")
    (found,) = told["predictions"]
    assert (found["ranks"], found["hosts"], {row["label"] for row in found["messages"]}) == (
        4,
        1,
        {"gradient", "scalars"},
    )
    assert any("not measured" in note for note in told["notes"])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), "hpcopt doctor --measure"),
        (("--measured", "m.json", "--ranks", "8,none"), "whole numbers above 0"),
        (("--measured", "m.json", "--ranks", "8²"), "whole numbers above 0"),
        (("--measured", "m.json", "--ranks-per-host", "0"), "must be finite and above 0"),
        (("--measured", "m.json", "--inner", "nan"), "must be finite and above 0"),
        (("--measured", "m.json", "--set", "run.device=cuda"), 'was measured on "cpu"'),
    ],
)
def test_what_cannot_be_predicted_is_refused(
    job: str,
    more: tuple[str, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "m.json")
    assert main(["predict", job, "--ranks", "2", *more]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_under_a_launcher_it_is_refused_before_mpi_would_wait_for_ranks_that_have_ended(job: str) -> None:
    code = f"""
import sys
from hpcopt.cli.main import main
assert main(["predict", {job!r}, "--ranks", "2"]) == 2
assert not {{"mpi4py", "torch"}} & set(sys.modules)
"""
    told = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"OMPI_COMM_WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "leave out mpirun" in " ".join(told.stderr.split())
