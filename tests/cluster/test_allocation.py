"""The batch job around a process: from its environment, and from what squeue says."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hpcopt.cluster.allocation import Allocation, find_allocation, seconds_of
from tests.support.programs import install

JOB = {"SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "4"}


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A squeue that prints what is in the file, and fails without one."""
    install(tmp_path, "squeue", f'[ "$*" = "--noheader --jobs 77 --format %L" ] && cat {tmp_path}/left')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path / "left"


def test_outside_of_a_job_there_is_none() -> None:
    assert find_allocation({"SLURM_NTASKS": "4"}) is None


@pytest.mark.parametrize(
    ("says", "limited", "seconds"),
    [
        ("1-02:03:04\n", True, 93784.0),
        ("58:12\n", True, 3492.0),
        ("UNLIMITED\n", False, None),
        ("INVALID\n", True, None),
    ],
)
def test_squeue_knows_how_much_time_is_left(squeue: Path, says: str, limited: bool, seconds: float | None) -> None:
    squeue.write_text(says)
    assert find_allocation(JOB) == Allocation("77", 2, 4, limited, seconds)


def test_without_an_answer_nothing_is_known(squeue: Path) -> None:
    assert find_allocation(JOB) == Allocation("77", 2, 4, True, None)


def test_where_slurm_says_the_end_nobody_is_asked(squeue: Path) -> None:
    squeue.write_text("UNLIMITED")
    found = find_allocation(JOB | {"SLURM_JOB_END_TIME": str(int(time.time()) + 600)})
    assert found is not None
    assert found.limited
    assert found.seconds_left == pytest.approx(600, abs=60)


@pytest.mark.parametrize("text", ["", "3", "NOT_SET", "1-", "a:b", "1:2:3:4"])
def test_what_is_no_time_is_not_known(text: str) -> None:
    assert seconds_of(text) is None
