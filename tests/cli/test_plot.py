from pathlib import Path

import pytest

from hpcopt.cli.main import main
from tests.support.runs import write_run, write_start


def test_the_figure_is_written(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path / name, epochs=2)) for name in "ab"]
    assert main(["plot", *runs, "-o", str(tmp_path / "plot.png")]) == 0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_has_just_started_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", str(write_start(tmp_path / "a")), "-o", str(tmp_path / "plot.png")]) == 2
    assert "no evaluation yet" in capsys.readouterr().err
    assert not (tmp_path / "plot.png").exists()
