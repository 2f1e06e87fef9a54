"""A rank that is killed with signal 9 at any moment of a save: the checkpoints that were there are as they were."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcopt.checkpoint.folder import published_steps
from hpcopt.checkpoint.restore import newest_valid, restore
from hpcopt.checkpoint.store import CheckpointStore
from hpcopt.checkpoint.writer import Point
from tests.fault.conftest import Launch
from tests.support.checkpoints import list_valid
from tests.support.simulated import on_ranks

JOB = """
import os, resource, signal, sys
from pathlib import Path
import numpy as np
from hpcopt.checkpoint.store import CheckpointStore
from hpcopt.comm.communicator import Communicator
from hpcopt.errors import CheckpointError

directory, victim, fatal = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
comm = Communicator()


def passing(point):
    if comm.rank == victim and point.value == fatal:
        directory.with_name("killed").write_text(fatal)
        os.kill(os.getpid(), signal.SIGKILL)


store = CheckpointStore(comm, directory, passing=passing)
for step in (2, 3):
    if fatal == "no space":
        limit = 100_000 if step == 2 and comm.rank == victim else -1
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
    try:
        store.save(step, {"w": np.full(300_000, float(step))}, {"rank": comm.rank})
    except CheckpointError as error:
        directory.with_name(f"error{comm.rank}").write_text(str(error))
directory.with_name("finished").write_text("")
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A folder with the checkpoint of step 1, saved by 2 ranks."""
    (tmp_path / "job.py").write_text(JOB)
    directory = tmp_path / "run" / "checkpoints"
    on_ranks(2, lambda comm: save(comm, directory, 1))
    return directory


def save(comm: Any, directory: Path, step: int) -> None:
    CheckpointStore(comm, directory).save(step, {"w": np.full(300_000, float(step))}, {"rank": comm.rank})


def go_on(comm: Any, directory: Path) -> int:
    """What the next start does: find, read, save once more; returns the step it went on from."""
    stored = newest_valid(comm, directory)
    assert stored is not None
    found = restore(comm, stored)
    assert (found.replicated["w"] == found.step).all()
    assert found.own == {"rank": comm.rank}
    save(comm, directory, found.step + 1)
    return found.step


def digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file of the published checkpoints."""
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.glob("step-*/*")}


@pytest.mark.parametrize(
    ("point", "victim"),
    [
        *((Point.OPENED, 1), (Point.HALFWAY, 1), (Point.CLOSED, 1), (Point.HALFWAY, 0)),
        *((Point.BEFORE_MANIFEST, 0), (Point.BEFORE_RENAME, 0), (Point.BEFORE_SYNC, 0)),
    ],
)
def test_a_kill_at_any_point_leaves_the_old_set(directory: Path, launch: Launch, point: Point, victim: int) -> None:
    before = digests(directory)
    job = str(directory.parents[1] / "job.py")
    killed = launch(2, [job, str(directory), str(victim), point.value])
    assert not killed.timed_out
    assert killed.returncode != 0
    assert directory.with_name("killed").read_text() == point.value
    assert not directory.with_name("finished").exists()
    steps = [1, 2] if point is Point.BEFORE_SYNC else [1]
    assert published_steps(directory) == steps
    assert len(list_valid(directory)) == len(steps)
    assert before.items() <= digests(directory).items()

    assert on_ranks(2, lambda comm: go_on(comm, directory)) == [steps[-1]] * 2
    assert len(list_valid(directory)) == 2
    assert [path.name for path in directory.iterdir() if path.name.startswith(".")] == []


def test_a_disk_that_is_full_ends_no_job(directory: Path, launch: Launch) -> None:
    job = str(directory.parents[1] / "job.py")
    found = launch(2, [job, str(directory), "1", "no space"])
    assert found.returncode == 0, found.stderr
    assert directory.with_name("finished").exists()
    errors = {directory.with_name(f"error{rank}").read_text() for rank in range(2)}
    assert len(errors) == 1
    assert "step-00000002 could not be written: File too large" in errors.pop()
    assert published_steps(directory) == [1, 3]
    assert len(list_valid(directory)) == 2
    assert "Segmentation fault" not in found.stderr
