"""What the output of a run keeps of a record that cannot go on."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from hpcopt.errors import UsageError
from hpcopt.train.run.output import keep_copy


def test_the_first_copy_of_a_record_stays(tmp_path: Path) -> None:
    """A second start from the same iteration on other ranks again has lost the rows of the first."""
    record, kept = tmp_path / "metrics.h5", tmp_path / "metrics-before-3.h5"
    for content in ("of four ranks", "of two ranks"):
        record.write_text(content)
        keep_copy(record, kept)
    assert kept.read_text() == "of four ranks"


def test_without_room_for_a_copy_the_start_is_refused_and_no_part_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_text("a part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copy2", full)
    (tmp_path / "metrics.h5").write_text("rows")
    with pytest.raises(UsageError, match=r"could not be copied to before.h5: No space left.*Make room"):
        keep_copy(tmp_path / "metrics.h5", tmp_path / "before.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.h5"]
