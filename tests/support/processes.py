"""What can be seen of other processes."""

from __future__ import annotations

import re
import signal
from contextlib import suppress
from pathlib import Path


def catches(number: int, wanted: signal.Signals) -> bool:
    """Whether a process has a handler for a signal; False where there is no such process (any more)."""
    with suppress(OSError):
        found = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{number}/status").read_text(), re.MULTILINE)
        return found is not None and bool(int(found[1], 16) >> (wanted - 1) & 1)
    return False
