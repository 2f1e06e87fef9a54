"""``hpcopt stop``: what it writes, and when there is nothing to stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpcopt.cli.main import main
from hpcopt.train.run.halt import HALT, read_halt
from tests.support.refusals import denied
from tests.support.runs import set_status, write_live, write_run


@pytest.fixture
def live(tmp_path: Path) -> Path:
    """A run that is going on, in this process."""
    return write_live(tmp_path / "a", epochs=1, saves=True)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["stop", *map(str, arguments)]) == 2
    return " ".join(capsys.readouterr().err.split())


def test_a_run_that_is_going_on_is_asked_to_end(live: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", str(live)]) == 0
    said, halt = capsys.readouterr().out, read_halt(live)
    assert halt is not None
    assert (halt.ends, halt.after_checkpoint) == (True, False)
    assert "with exit status 5, after which no job script requeues it" in said
    assert f"remove {live / HALT}" in said


def test_who_has_asked_already_is_named(live: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["stop", str(live)])
    halt = read_halt(live)
    assert halt is not None
    assert f"is ending already, as {halt.by} asked at {halt.when}" in refusal(capsys, live)
    assert "is ending already" in refusal(capsys, live, "--after-checkpoint")


def test_an_end_that_waits_for_a_checkpoint_can_be_hurried(live: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", str(live), "--after-checkpoint"]) == 0
    assert "as soon as it is saved anyway" in capsys.readouterr().out
    assert "without --after-checkpoint it ends at once" in refusal(capsys, live, "--after-checkpoint")
    assert main(["stop", str(live)]) == 0
    halt = read_halt(live)
    assert halt is not None
    assert not halt.after_checkpoint


def test_a_file_made_by_hand_becomes_the_end(live: Path) -> None:
    """A run that was to be requeued is not when its user says so meanwhile."""
    (live / HALT).touch()
    assert main(["stop", str(live)]) == 0
    halt = read_halt(live)
    assert halt is not None
    assert halt.ends


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"status": "finished"}, "is not running: finished (The requested number of epochs or iterations is done)"),
        ({"status": "failed", "stop_reason": None}, "is not running: failed. There is nothing to stop."),
        ({"status": "running", "stop_reason": None}, "is not running: failed (The process ended without closing"),
        ({"status": "saved", "exit_status": 75, "job": "77"}, "scancel 77"),
    ],
)
def test_where_nothing_runs_there_is_nothing_to_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: dict[str, Any], says: str
) -> None:
    path = write_run(tmp_path / "a", epochs=1)
    set_status(path, **fields)
    assert says in refusal(capsys, path)
    assert not (path / HALT).exists()


def test_a_run_that_is_not_saved_cannot_be_stopped_by_a_file(live: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_status(live, saves=False, job="77")
    assert "checkpoint.save = false" in (said := refusal(capsys, live))
    assert "scancel 77" in said
    assert not (live / HALT).exists()


def test_a_directory_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no run" in refusal(capsys, tmp_path)


def test_a_directory_of_somebody_else_is_refused(
    live: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcopt.cli.stop.write_halt", denied)
    assert "cannot be written" in (said := refusal(capsys, live))
    assert "Permission denied" in said
