from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from hpcopt.checkpoint import folder
from hpcopt.checkpoint.folder import BEST, RUN, pointed, published_steps, remove_leftovers, set_aside, step_of
from hpcopt.checkpoint.restore import newest_valid
from hpcopt.checkpoint.store import CheckpointStore
from hpcopt.errors import CheckpointError
from tests.support.checkpoints import write_small
from tests.support.refusals import denied
from tests.support.simulated import on_ranks


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_only_folders_with_the_name_of_a_step_are_checkpoints(tmp_path: Path) -> None:
    for name in (
        "step-00000002",
        "step-123456789",
        "step-00000010",
        "step-1",
        "step-000000001",
        ".step-00000003.ab.tmp",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000004.bad").mkdir()
    (tmp_path / "step-00000005").write_text("a file")
    assert published_steps(tmp_path) == [2, 10, 123456789]
    assert published_steps(tmp_path / "missing") == []
    assert step_of(folder.unfinished(tmp_path, 3)) is None


def test_what_a_run_that_died_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    write_small(tmp_path, [1, 2])
    before = names(tmp_path)
    for name in (".step-00000003.0a1b2c.tmp", ".step-00000001.0a1b2c.old"):
        shutil.copytree(tmp_path / "step-00000001", tmp_path / name)
    (tmp_path / ".latest.77").write_text("step-0")
    for name in ("notes", "step-00000009.bad", ".hidden"):
        (tmp_path / name).mkdir()
    assert len(remove_leftovers(tmp_path)) == 3
    assert names(tmp_path) == before | {"notes", "step-00000009.bad", ".hidden"}


def test_a_checkpoint_that_was_being_replaced_comes_back(tmp_path: Path) -> None:
    (path,) = write_small(tmp_path)
    os.rename(path, tmp_path / ".step-00000001.0a1b2c.old")
    remove_leftovers(tmp_path)
    assert published_steps(tmp_path) == [1]


def test_leftovers_that_cannot_be_removed_stay_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".step-00000003.0a1b2c.tmp").mkdir()
    monkeypatch.setattr(folder.shutil, "rmtree", denied)
    with caplog.at_level(logging.WARNING):
        assert len(remove_leftovers(tmp_path)) == 1
    assert "could not be removed: Permission denied" in caplog.text


def test_damaged_ones_get_names_of_their_own(tmp_path: Path) -> None:
    for _ in range(3):
        (tmp_path / "step-00000001").mkdir()
        folder.move_aside(tmp_path / "step-00000001")
    expected = ["step-00000001.bad", "step-00000001.bad-2", "step-00000001.bad-3"]
    assert [path.name for path in set_aside(tmp_path)] == expected
    assert published_steps(tmp_path) == []


def test_pointers_are_believed_only_if_what_they_name_is_there(tmp_path: Path) -> None:
    (tmp_path / "step-00000007").mkdir()
    assert pointed(tmp_path, BEST) is None
    folder.point(tmp_path, BEST, 7)
    assert pointed(tmp_path, BEST) == 7
    assert (tmp_path / BEST).read_text() == "step-00000007\n"
    for text in ("step-00000008\n", "", "../step-00000007", "step-00000007/..", "/etc", "\0"):
        (tmp_path / BEST).write_text(text)
        assert pointed(tmp_path, BEST) is None
    (tmp_path / BEST).write_bytes(b"\xff\xfe")
    assert pointed(tmp_path, BEST) is None


def test_the_identity_of_a_run_outlives_its_file(tmp_path: Path) -> None:
    write_small(tmp_path)
    made = (tmp_path / RUN).read_text().strip()
    assert folder.make_identity(tmp_path) == made
    (tmp_path / RUN).unlink()
    assert folder.run_identity(tmp_path) == made
    assert folder.make_identity(tmp_path) == made
    assert (tmp_path / RUN).read_text().strip() == made


@pytest.mark.parametrize("method", ["iterdir", "is_dir"])
def test_a_folder_that_cannot_be_looked_into_is_one_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    write_small(tmp_path)
    monkeypatch.setattr(Path, method, denied)
    for look in (published_steps, lambda path: on_ranks(2, lambda comm: newest_valid(comm, path))):
        with pytest.raises(CheckpointError, match="cannot be looked into: Permission denied") as found:
            look(tmp_path)
        assert found.value.exit_status == 74


def test_a_run_goes_on_when_old_checkpoints_cannot_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def save(comm: Any) -> None:
        store = CheckpointStore(comm, tmp_path)
        comm.allgather_objects(None)
        if comm.rank == 0:
            monkeypatch.setattr(Path, "iterdir", denied)
        comm.allgather_objects(None)
        store.save(1, {"w": 1.0})

    on_ranks(2, save)
    assert "Old checkpoints are not deleted." in caplog.text
