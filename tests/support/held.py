"""A job that takes a second or two, but waits where it is told to until it is asked to save itself or is killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hpcopt.analysis.history import open_run
from hpcopt.checkpoint.folder import FOLDER, published, published_steps
from hpcopt.checkpoint.stored import StoredCheckpoint
from tests.support.resuming import assert_same_contents

JOB = """
[run]
iterations = 60
evaluate_every = 2
[data]
source = "digits"
batch = 200
[model]
name = "mymodels:slow"
[solver]
name = "apts"
[checkpoint]
every_epochs = 0.6
"""

SAVED_EVERY = 5
"""Iterations of the job from one checkpoint to the next."""

MODELS = """
import os, signal, time
from pathlib import Path

import torch

START = os.environ.get("SLURM_RESTART_COUNT", "0")

def wait_until_asked():
    '''Once the file named in ``holdSTART`` is there: until a rank was asked to save and stop, or is killed.'''
    hold, asked = Path(f"hold{START}"), Path(f"asked{START}")
    if not hold.exists() or not Path(hold.read_text()).exists():
        return
    Path(f"waits{START}").touch()
    deadline = time.monotonic() + 250
    while not asked.exists() and time.monotonic() < deadline:
        if signal.getsignal(signal.SIGUSR1).__self__.pending:
            asked.touch()
        time.sleep(0.005)

class Slow(torch.nn.Linear):
    def forward(self, x):
        if self.training:
            time.sleep(0.002)
            wait_until_asked()
        return super().forward(x)

def slow(input_shape, outputs):
    return torch.nn.Sequential(torch.nn.Flatten(), Slow(64, outputs))
"""


def write_job(path: Path, job: str = JOB, models: str = MODELS) -> Path:
    """The job and its model in a folder, which is returned."""
    (path / "job.toml").write_text(job)
    (path / "mymodels.py").write_text(models)
    return path


def hold(path: Path, file: str, start: int = 0) -> None:
    """The job waits in its training passes from the moment ``file`` is there until a rank has been asked to stop.

    However slow this process is, the job is then not at its end before the request or the kill arrives. A file
    ``waitsSTART`` says that it has begun to wait.

    Args:
        path: the folder of the job.
        file: relative to it.
        start: how often the batch system has started the job again before.
    """
    (path / f"hold{start}").write_text(file)


def last_step(path: Path) -> int:
    """Of the newest checkpoint in the run directory ``out`` of a job, 0 without one."""
    return max(published_steps(path / "out" / FOLDER), default=0)


def newest(path: Path) -> dict[str, Any]:
    """All that the newest checkpoint of a run holds."""
    with StoredCheckpoint(published(path / FOLDER)[-1]) as stored:
        found = {name: stored.replicated(name) for name in stored.names()}
        for rank in range(stored.ranks):
            found |= {f"own{rank}/{name}": stored.own(rank, name) for name in stored.own_names(rank)}
        return found


def assert_equal_runs(path: Path, other: Path) -> None:
    """The last checkpoints hold the same bits, and so do the records."""
    assert_same_contents(newest(path), newest(other))
    one, two = open_run(path), open_run(other)
    for mine, its in ((one.iterations, two.iterations), (one.evaluations, two.evaluations)):
        assert mine.dtype.names is not None
        for name in set(mine.dtype.names) - {"seconds", "wall_seconds", "seconds_waited"}:
            np.testing.assert_array_equal(mine[name], its[name], err_msg=name)
