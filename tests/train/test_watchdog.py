"""What the report on silent ranks says, from the notes that ranks leave. tests/fault has ranks that fall silent."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hpcopt.train.watchdog import NOTE_BYTES, Watchdog, describe_silence, main_frames, note_path

STACKS = """Timeout (0:00:02)!
Thread 0x00007f0000000001 (most recent call first):
  File "/lib/python3.11/threading.py", line 331 in wait
  File "/site/hpcopt/train/watchdog.py", line 90 in _watch

Thread 0x00007f0000000002 (most recent call first):
  File "{first}", line 12 in {function}
  File "/site/hpcopt/objective/shard.py", line 70 in gradient_sum
  File "/site/hpcopt/cli/main.py", line 97 in <lambda>
"""


def note(directory: Path, rank: int, what: str, stacks: str = "") -> None:
    path = note_path(directory, rank)
    path.parent.mkdir(exist_ok=True)
    path.write_text(what.ljust(NOTE_BYTES - 1) + "\n" + stacks)


def test_the_report_tells_the_silent_rank_from_those_that_wait_for_it(tmp_path: Path) -> None:
    waits = STACKS.format(first="/site/hpcopt/comm/communicator.py", function="allreduce")
    note(tmp_path, 0, "step 12", waits)
    note(tmp_path, 1, "step 12", STACKS.format(first="/home/me/mymodels.py", function="forward"))
    note(tmp_path, 2, "step 12", waits)
    note(tmp_path, 3, "evaluation after step 11")
    text = describe_silence(tmp_path, 5, 2)
    assert "No rank has made progress for 2 s." in text
    assert "Rank 1 is silent in its step 12, at /home/me/mymodels.py:12 in forward; called from" in text
    assert "Rank 3 gives no sign in its evaluation after step 11" in text
    assert "Rank 4 left no note." in text
    assert text.endswith("In communication, waiting for others: rank 0, 2.")


def test_the_main_thread_is_told_from_those_that_watch() -> None:
    frames = main_frames(STACKS.format(first="/home/me/mymodels.py", function="forward"))
    assert frames[0] == "/home/me/mymodels.py:12 in forward"
    assert len(frames) == 3


@pytest.mark.parametrize("stacks", ["", "Timeout (0:00:02)!\n", "Thread 0x1 (most recent call first):\n"])
def test_without_stacks_there_are_no_frames(stacks: str) -> None:
    assert main_frames(stacks) == []


def test_a_disk_that_is_full_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "log").mkdir()
    with Watchdog(tmp_path, 0, 1, 60.0, abort=False) as watchdog:
        monkeypatch.setattr(os, "pwrite", full)
        watchdog.begin("step 1")
    assert not note_path(tmp_path, 0).exists()
