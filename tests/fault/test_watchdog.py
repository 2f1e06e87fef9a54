"""A rank that sleeps, spins in C code or is stopped is named in a report, and the run goes on when the rank does."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fault.conftest import run_words
from tests.support.held import write_job

JOB = """
[run]
iterations = 12
[data]
source = "digits"
[model]
name = "mymodels:silent"
[solver]
name = "sgd"
[debug]
silence_seconds = 2
"""

MODELS = """
import ctypes, os, time
from pathlib import Path

import torch

class Silent(torch.nn.Linear):
    passes = 0

    def forward(self, x):
        from mpi4py import MPI
        self.passes += self.training
        if self.passes == 5 and MPI.COMM_WORLD.rank == self.rank:
            self.passes += 1
            Path("silent").write_text(str(os.getpid()))
            if self.how == "sleeps":
                time.sleep(self.seconds)
            elif self.how == "spins":  # in C code, with the interpreter's lock
                ctypes.PyDLL(None).sleep(self.seconds)
            else:
                time.sleep(0.5)  # time enough to be stopped
        return super().forward(x.flatten(1))

def silent(input_shape, outputs, rank=1, how="sleeps", seconds=6):
    model = Silent(64, outputs)
    model.rank, model.how, model.seconds = rank, how, seconds
    return model
"""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_job(tmp_path, JOB, MODELS)


@pytest.mark.parametrize(("how", "rank"), [("sleeps", 1), ("spins", 1), ("spins", 0)])
def test_a_silent_rank_is_named_with_what_it_does_and_where(
    workplace: Path, launch: Callable, how: str, rank: int
) -> None:
    done = launch(2, run_words(f"model.how={how}", f"model.rank={rank}"), timeout=90)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("No rank has made progress for 2 s") == 1
    assert f"Rank {rank} is silent in its step " in done.stderr
    assert "mymodels.py:" in done.stderr
    assert f"waiting for others: rank {1 - rank}" in done.stderr
    assert not list(Path("out/log").glob("*.silent"))


def test_a_rank_that_was_stopped_is_reported_and_the_run_finishes(workplace: Path, launch: Callable) -> None:
    stopped = []

    def stop() -> None:
        deadline = time.monotonic() + 60
        while not Path("silent").exists() or not Path("silent").read_text():
            if time.monotonic() > deadline:
                return
            time.sleep(0.05)
        stopped.append(int(Path("silent").read_text()))
        os.kill(stopped[0], signal.SIGSTOP)
        time.sleep(5)
        os.kill(stopped[0], signal.SIGCONT)

    thread = threading.Thread(target=stop)
    thread.start()
    done = launch(2, run_words("model.how=stops"), timeout=90)
    thread.join()
    assert len(stopped) == 1
    assert done.returncode == 0, done.stderr
    assert "Rank 1 gives no sign in its step " in done.stderr


def test_a_silent_job_is_ended_where_that_was_asked_for(workplace: Path, launch: Callable) -> None:
    done = launch(2, run_words("model.seconds=80", "debug.abort_on_silence=true"), timeout=60)
    assert not done.timed_out
    assert done.returncode == 1, done.stderr
    assert "Rank 1 is silent in its step " in done.stderr
