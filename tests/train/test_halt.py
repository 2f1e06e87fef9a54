"""The halt file: whom it asks, what it asks, and whom it asks no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcopt.train.halt import HALT, Halt, drop_stale_halt, read_halt, write_halt
from hpcopt.train.run_lock import FILE_NAME, Owner, RunLock


@pytest.fixture(autouse=True)
def in_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "PBS_JOBID", "LSB_JOBID", "JOB_ID", "LSB_RESTART", "RESTARTED"):
        monkeypatch.delenv(name, raising=False)


def start(path: Path) -> Owner:
    """The next start of a run: it takes the lock, and looks at what was asked before."""
    (path / FILE_NAME).unlink(missing_ok=True)
    owner = RunLock.acquire(path / FILE_NAME).owner
    drop_stale_halt(path, owner)
    return owner


def test_what_was_asked_can_be_read(tmp_path: Path) -> None:
    owner = start(tmp_path)
    asked = write_halt(tmp_path, after_checkpoint=True)
    assert read_halt(tmp_path) == asked
    assert (asked.ends, asked.after_checkpoint, asked.owner) == (True, True, owner)
    assert "@" in asked.by


@pytest.mark.parametrize("content", ["", "stop please", "[]", '{"owner": {"host": 1, "nobody": 2}}', '{"ends": true}'])
def test_a_file_made_by_hand_counts_as_empty_whatever_it_says(tmp_path: Path, content: str) -> None:
    assert read_halt(tmp_path) is None
    (tmp_path / HALT).write_text(content)
    assert read_halt(tmp_path) == Halt()


@pytest.mark.parametrize("by_hand", [True, False])
def test_what_was_asked_of_an_earlier_start_is_removed(
    tmp_path: Path, by_hand: bool, caplog: pytest.LogCaptureFixture
) -> None:
    start(tmp_path)
    if by_hand:
        (tmp_path / HALT).touch()
    else:
        write_halt(tmp_path)
    start(tmp_path)
    assert read_halt(tmp_path) is None
    assert "was meant for an earlier start" in caplog.text


def test_what_is_asked_of_this_start_stays(tmp_path: Path) -> None:
    owner = start(tmp_path)
    write_halt(tmp_path)
    drop_stale_halt(tmp_path, owner)
    assert read_halt(tmp_path) is not None


def test_a_job_that_was_asked_to_end_ends_when_it_was_requeued_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node may have failed before the run could obey; the user's will is the same. Another job is a will anew."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    start(tmp_path)
    write_halt(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    start(tmp_path)
    assert read_halt(tmp_path) is not None
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    start(tmp_path)
    assert read_halt(tmp_path) is None


def test_a_run_started_again_by_hand_within_a_job_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    start(tmp_path)
    write_halt(tmp_path)
    start(tmp_path)
    assert read_halt(tmp_path) is None
