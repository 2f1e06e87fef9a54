"""A job that is going on is watched with ``hpcopt status`` and ended with ``hpcopt stop``, from outside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcopt.analysis.history import open_run
from hpcopt.analysis.status import standing
from hpcopt.cli.main import main
from hpcopt.train.run.halt import HALT
from tests.fault.conftest import run_words
from tests.fault.going import started
from tests.support.held import hold, last_step, write_job


def test_a_job_is_seen_at_work_ended_and_goes_on_when_its_user_says_so(
    tmp_path: Path, launch: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_job(tmp_path)
    hold(tmp_path, "out/checkpoints/latest")
    with started(tmp_path) as job:
        job.wait_for((tmp_path / "out/checkpoints/latest").exists)
        seen = standing(open_run("out"))
        assert (seen["status"], seen["alive"], seen["planned"]["iterations"]) == ("running", True, 60)
        assert (seen["checkpoint"]["step"], seen["iterations"] >= 5, seen["rate"] > 0) == (5, True, True)
        assert main(["stop", "out"]) == 0
        assert main(["stop", "out"]) == 2
        assert "is ending already" in " ".join(capsys.readouterr().err.split())
        done = job.finish()
    assert done.returncode == 5, done.stderr
    status = json.loads(Path("out/status.json").read_text())
    assert (status["status"], status["exit_status"]) == ("saved", 5)
    step = last_step(tmp_path)
    assert f"It is saved after iteration {step}; the same command goes on from there." in done.stdout
    assert not Path("out", HALT).exists()
    (tmp_path / "hold0").unlink()
    done = launch(2, run_words(), timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"going on after iteration {step}\n" in done.stdout
