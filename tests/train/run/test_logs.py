from __future__ import annotations

import errno
import logging
import shutil
from pathlib import Path

import pytest

from hpcopt.errors import UsageError
from hpcopt.train.run.logs import LogFile, RankLog


def record(text: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("hpcopt", logging.WARNING, "here.py", 1, text, args, None)


def test_the_first_rank_writes_everything_and_the_others_warnings(tmp_path: Path) -> None:
    for rank, lines in ((0, ["a note", "a warning"]), (1, ["a warning"])):
        log = RankLog(tmp_path, rank, 2)
        logger = logging.getLogger("hpcopt.test")
        logger.info("a note")
        logger.warning("a warning")
        log.close()
        written = (tmp_path / "log" / f"rank000{rank}.log").read_text().splitlines()
        assert [line.rpartition(": ")[2] for line in written] == lines
        assert all(f"[rank {rank}/2]" in line for line in written)


def test_a_log_that_cannot_be_begun_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    with pytest.raises(UsageError, match="choose one on a shared file system"):
        RankLog(tmp_path, 0, 1)


@pytest.mark.parametrize("delay", [True, False])
def test_a_log_that_can_no_longer_be_written_says_so_once(
    tmp_path: Path, delay: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With ``delay`` the file is to be opened with the first line, else its disk is full."""
    handler = LogFile(tmp_path / "log" / "a.log" if delay else tmp_path / "a.log", delay=delay)
    if not delay:

        def refuse(text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(handler.stream, "write", refuse)
    shutil.rmtree(tmp_path / "log", ignore_errors=True)
    for _ in range(3):
        handler.handle(record("something"))
    handler.close()
    assert capsys.readouterr().err.count("a.log can no longer be written") == 1


def test_a_mistake_in_a_message_is_shown_as_ever(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler = LogFile(tmp_path / "a.log")
    handler.handle(record("%d", "no number"))
    handler.close()
    assert "TypeError" in capsys.readouterr().err
