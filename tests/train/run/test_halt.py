"""The halt file: whom it asks, what it asks, and whom it asks no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcopt.comm.communicator import Communicator
from hpcopt.solvers.sgd import SGD
from hpcopt.solvers.solver import StopReason
from hpcopt.train.minimize import minimize
from hpcopt.train.run.halt import HALT, Halt, drop_stale_halt, read_halt, write_halt
from hpcopt.train.run.lock import FILE_NAME, Owner, RunLock
from tests.support.problems import sharded


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


def test_a_run_is_not_stopped_by_what_was_there_before_it(comm: Communicator, tmp_path: Path) -> None:
    stops = []
    for iterations in (2, 4, 6):
        result = minimize(sharded(comm), SGD(learning_rate=0.1), iterations=iterations, run_dir=tmp_path)
        stops.append((result.stop, result.iterations))
        (tmp_path / HALT).touch() if iterations == 2 else write_halt(tmp_path)
    assert stops == [(StopReason.EPOCHS_DONE, 2), (StopReason.EPOCHS_DONE, 4), (StopReason.EPOCHS_DONE, 6)]


def test_a_requeued_job_obeys_after_one_iteration(
    comm: Communicator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    minimize(sharded(comm), SGD(learning_rate=0.1), iterations=2, run_dir=tmp_path)
    start(tmp_path)
    write_halt(tmp_path)
    (tmp_path / FILE_NAME).unlink()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    result = minimize(sharded(comm), SGD(learning_rate=0.1), iterations=6, run_dir=tmp_path)
    assert (result.stop, result.iterations) == (StopReason.STOPPED, 3)
    assert read_halt(tmp_path) is None


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
