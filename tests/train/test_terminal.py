"""Whether a person watches is read off the launcher's output, not off a rank's own."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import sys
import termios
from pathlib import Path

import pytest

from hpcopt.train import terminal

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def test_a_process_is_described_by_its_name_and_parent() -> None:
    name, parent = terminal._describe(os.getpid())
    assert name
    assert parent == os.getppid()


def test_a_terminal_has_the_width_its_window_has_and_none_without_a_window(tmp_path: Path) -> None:
    controller, screen = pty.openpty()
    output = Path(f"/proc/self/fd/{screen}")
    try:
        assert terminal._columns(output) is None, "Open MPI's pseudo-terminals have no window"
        fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 117, 0, 0))
        assert terminal._columns(output) == 117
    finally:
        os.close(controller)
        os.close(screen)


def test_a_file_or_nothing_is_no_terminal(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    assert terminal._columns(tmp_path / "log") is None
    assert terminal._columns(tmp_path / "none") is None


def test_the_launchers_output_decides_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(terminal, "_launcher", lambda: Path("/proc/4711"))
    monkeypatch.setattr(terminal, "_columns", lambda output: asked.append(output) or 90)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert terminal.terminal_columns() == 90
    assert asked == [Path("/proc/4711/fd/1")]


def test_without_a_launcher_the_own_output_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_launcher", lambda: None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert terminal.terminal_columns() is None


def test_the_outermost_launcher_among_the_ancestors_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    family = {1: ("init", 0), 10: ("bash", 1), 20: ("mpiexec", 10), 30: ("hydra_pmi_proxy", 20), 40: ("python", 30)}

    def describe(pid: int) -> tuple[str, int]:
        if pid not in family:
            raise FileNotFoundError(f"/proc/{pid}/stat")
        return family[pid]

    monkeypatch.setattr(terminal, "_describe", describe)
    monkeypatch.setattr(os, "getpid", lambda: 40)
    assert terminal._launcher() == Path("/proc/20")
