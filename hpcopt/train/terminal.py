"""Whether a person watches: under a launcher, rank 0's own standard output does not tell.

Open MPI gives every rank a pseudo-terminal, also when its own output goes to a file, and MPICH a pipe, also when its
own output is a terminal. So the output of the launcher, an ancestor of this process on this machine, is looked at.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_LAUNCHERS = ("mpirun", "mpiexec", "prterun", "prted", "orterun", "hydra")
_ANCESTORS = 6


def terminal_columns() -> int | None:
    """Width of the terminal that shows this process's output; None when there is none, or when that cannot be known."""
    launcher = _launcher()
    if launcher is not None:
        return _columns(launcher / "fd" / "1")
    if not sys.stdout.isatty():
        return None
    return os.get_terminal_size(sys.stdout.fileno()).columns or None


def _launcher() -> Path | None:
    """The outermost ancestor in /proc that is an MPI launcher."""
    found, pid = None, os.getpid()
    for _ in range(_ANCESTORS):
        try:
            name, parent = _describe(pid)
        except (OSError, ValueError, IndexError):
            break
        if name.startswith(_LAUNCHERS):
            found = Path(f"/proc/{pid}")
        pid = parent
    return found


def _describe(pid: int) -> tuple[str, int]:
    """Name and parent of a process. The name, in brackets, may hold anything; the parent stands two fields on."""
    text = Path(f"/proc/{pid}/stat").read_text()
    name = text[text.index("(") + 1 : text.rindex(")")]
    return name, int(text[text.rindex(")") + 1 :].split()[1])


def _columns(output: Path) -> int | None:
    try:
        descriptor = os.open(output, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return (os.get_terminal_size(descriptor).columns or None) if os.isatty(descriptor) else None
    except OSError:
        return None
    finally:
        os.close(descriptor)
