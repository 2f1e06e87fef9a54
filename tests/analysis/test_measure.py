"""Where a measurement is kept; what is measured on several ranks is in tests/mpi/test_measure.py."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from hpcopt.analysis.measure import write
from hpcopt.errors import UsageError


def test_a_measurement_that_cannot_be_kept_leaves_the_one_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "new" / "m.json"
    write({"ranks": 1}, path)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UsageError, match=r"No space left on device\)\. Give another --output"):
        write({"ranks": 2}, path)
    assert json.loads(path.read_text()) == {"ranks": 1}
    assert [entry.name for entry in path.parent.iterdir()] == ["m.json"]
