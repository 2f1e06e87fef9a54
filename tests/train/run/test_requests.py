"""Who may ask a run to stop: a signal, a file, a clock."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hpcopt.train.run import requests as module
from hpcopt.train.run.halt import HALT, write_halt
from hpcopt.train.run.requests import Requests


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    """Every test finds the signal as the process has it, and leaves it so."""
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that tests move."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_nothing_is_pending_before_somebody_has_asked() -> None:
    with closing(Requests().listen()) as requests:
        assert not requests.pending


def test_a_signal_is_noted_once_for_all() -> None:
    with closing(Requests().listen()) as requests:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert requests.pending
        assert requests.pending


def test_the_signal_is_given_back() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    requests = Requests().listen()
    requests.close()
    requests.close()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert heard == [signal.SIGUSR1]
    assert not requests.pending


def test_a_process_that_ends_with_the_run_ignores_a_late_signal() -> None:
    """Python gives a handler of its own back to the system when it ends; the signal would then end the process."""
    Requests().listen(last=True).close()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGUSR1)


def test_in_another_thread_no_signal_is_taken() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    thread = threading.Thread(target=lambda: Requests().listen())
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_halt_file_asks_and_is_gone_afterwards(tmp_path: Path, clock: list[float]) -> None:
    requests = Requests()
    requests.watch(tmp_path, None)
    assert not requests.pending
    (tmp_path / HALT).touch()
    assert not requests.pending, "looked at too soon: a file system may be slow"
    clock[0] += module.SECONDS_BETWEEN_LOOKS
    assert requests.pending
    requests.close()
    assert not (tmp_path / HALT).exists()


def test_a_halt_file_that_came_too_late_does_not_stop_the_next_start(tmp_path: Path) -> None:
    requests = Requests()
    requests.watch(tmp_path, None)
    (tmp_path / HALT).touch()
    requests.close()
    assert not (tmp_path / HALT).exists()


def test_a_halt_file_that_cannot_be_removed_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / HALT).mkdir()
    requests = Requests()
    requests.watch(tmp_path, None)
    assert requests.pending
    requests.close()
    assert f"The file {tmp_path / HALT} could not be removed" in caplog.text


def test_an_end_that_was_asked_for_is_told_from_a_pause(tmp_path: Path) -> None:
    requests = Requests()
    requests.watch(tmp_path, None)
    (tmp_path / HALT).touch()
    assert (requests.pending, requests.ends(saved=True)) == (True, False)
    write_halt(tmp_path)
    assert (requests.pending, requests.ends(saved=False)) == (True, True)
    requests.close()
    assert not (tmp_path / HALT).exists()


def test_an_end_after_a_checkpoint_waits_for_one(tmp_path: Path, clock: list[float]) -> None:
    requests = Requests()
    requests.watch(tmp_path, None)
    write_halt(tmp_path, after_checkpoint=True)
    assert not requests.pending
    assert not requests.ends(saved=False)
    write_halt(tmp_path)
    clock[0] += module.SECONDS_BETWEEN_LOOKS
    assert requests.pending, "the second request does not wait"
    write_halt(tmp_path, after_checkpoint=True)
    assert requests.ends(saved=True)


def test_an_end_that_was_asked_for_too_late_is_kept_for_the_job_that_is_requeued(tmp_path: Path) -> None:
    requests = Requests()
    requests.watch(tmp_path, None)
    write_halt(tmp_path)
    requests.close()
    assert (tmp_path / HALT).exists()


def test_the_time_is_counted_from_the_start_of_the_process(clock: list[float]) -> None:
    """Reading the data belongs to what a batch system has given time for."""
    requests = Requests()
    clock[0] += 50.0
    requests.watch(None, 60.0)
    assert not requests.pending
    clock[0] += 10.0
    assert requests.pending
