from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpcopt.checkpoint import folder, restore
from hpcopt.checkpoint.folder import LATEST, RUN, published_steps
from hpcopt.checkpoint.restore import newest_valid
from hpcopt.checkpoint.stored import StoredCheckpoint
from hpcopt.comm.communicator import Communicator
from hpcopt.errors import CheckpointError, NoValidCheckpointError, UsageError
from tests.support.checkpoints import make_later_schema, own, replicated, same, write, write_small
from tests.support.refusals import denied, denied_for
from tests.support.saved_models import damage
from tests.support.simulated import on_ranks


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("saved_on", [1, 2, 3, 4])
@pytest.mark.parametrize("read_on", [1, 2, 3, 4])
def test_any_number_of_ranks_goes_on_with_what_another_number_saved(
    directory: Path, saved_on: int, read_on: int
) -> None:
    write(directory, [9], saved_on)

    def go_on(comm: Any) -> None:
        stored = newest_valid(comm, directory)
        assert stored is not None
        bias, weight = torch.zeros(7), np.zeros((531, 257))
        found = restore.restore(comm, stored, {"model/fc1/bias": bias, "model/fc1/weight": weight})
        assert (found.step, found.ranks) == (9, saved_on)
        assert found.replicated.keys() == replicated(9).keys()
        assert all(same(found.replicated[name], value) for name, value in replicated(9).items())
        assert found.replicated["model/fc1/bias"] is bias
        if saved_on == read_on:
            assert found.own is not None
            assert found.own.keys() == own(comm.rank).keys()
            assert all(same(found.own[name], value) for name, value in own(comm.rank).items())
        else:
            assert found.own is None

    on_ranks(read_on, go_on)


def test_without_any_checkpoint_there_is_nothing_to_go_on_from(directory: Path, comm: Communicator) -> None:
    assert newest_valid(comm, directory) is None
    directory.mkdir()
    assert newest_valid(comm, directory) is None


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("name", ["rank0001.h5", "manifest.json"])
def test_a_damaged_one_is_set_aside_and_the_one_before_is_used(
    directory: Path, caplog: pytest.LogCaptureFixture, name: str, ranks: int
) -> None:
    write_small(directory, [1, 2, 3])
    damage(directory / "step-00000003" / name)
    content = (directory / "step-00000003" / name).read_bytes()
    with caplog.at_level(logging.WARNING):
        found = on_ranks(ranks, lambda comm: newest_valid(comm, directory))
    assert {stored.step for stored in found if stored} == {2}
    assert len(caplog.records) == 1
    assert f"step-00000003/{name}" in caplog.text
    assert "is now" in caplog.text
    assert published_steps(directory) == [1, 2]
    assert (directory / "step-00000003.bad" / name).read_bytes() == content, "nothing is deleted"


def test_the_pointer_alone_is_never_believed(directory: Path, comm: Communicator) -> None:
    write_small(directory, [1, 2])
    for text in ("step-00000001\n", "step-00000099\n", "nonsense"):
        (directory / LATEST).write_text(text)
        stored = newest_valid(comm, directory)
        assert stored is not None
        assert stored.step == 2


@pytest.mark.parametrize("ranks", [1, 2])
def test_when_all_are_damaged_the_error_says_what_to_do(directory: Path, ranks: int) -> None:
    paths = write_small(directory, [1, 2])
    for path in paths:
        damage(path / "rank0000.h5")

    def go_on(comm: Any) -> None:
        for _ in range(2):  # also when it is started again, with nothing but *.bad
            with pytest.raises(NoValidCheckpointError, match=r"verify.*--fresh") as found:
                newest_valid(comm, directory)
            assert found.value.exit_status == 4
            assert found.value.collective

    on_ranks(ranks, go_on)
    assert sorted(path.name for path in folder.set_aside(directory)) == ["step-00000001.bad", "step-00000002.bad"]


def test_a_checkpoint_of_another_run_is_not_used(directory: Path, comm: Communicator, tmp_path: Path) -> None:
    write_small(directory, [1])
    (other,) = write_small(tmp_path / "other", [2])
    shutil.copytree(other, directory / other.name)
    stored = newest_valid(comm, directory)
    assert stored is not None
    assert stored.step == 1
    (directory / RUN).unlink()
    assert newest_valid(comm, directory) is not None


def test_a_folder_that_cannot_be_renamed_is_left_out(
    directory: Path, comm: Communicator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_small(directory, [1, 2])
    (directory / "step-00000002" / "manifest.json").unlink()
    monkeypatch.setattr(restore, "move_aside", denied)
    with caplog.at_level(logging.WARNING):
        stored = newest_valid(comm, directory)
    assert stored is not None
    assert stored.step == 1
    assert "could not be renamed (Permission denied)" in caplog.text


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("closed", ["manifest.json", "rank0000.h5", "rank0001.h5", None])
def test_what_may_not_be_read_is_neither_damaged_nor_passed_over(
    directory: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, closed: str | None
) -> None:
    """With None the folder may not be listed."""
    path = write_small(directory, [1, 2])[1]
    refused = path / closed if closed else path
    for reader in ("open", "stat") if closed else ("iterdir",):
        monkeypatch.setattr(Path, reader, denied_for(refused, getattr(Path, reader)))

    def go_on(comm: Any) -> None:
        words = re.escape(f"{refused}: cannot be read: Permission denied")
        with pytest.raises(CheckpointError, match=words) as found:
            newest_valid(comm, directory)
        assert found.value.exit_status == 74

    on_ranks(ranks, go_on)
    assert published_steps(directory) == [1, 2]


def test_a_later_schema_stops_instead_of_falling_back(directory: Path) -> None:
    paths = write_small(directory, [1, 2])
    make_later_schema(paths[1])

    def go_on(comm: Any) -> None:
        with pytest.raises(CheckpointError, match=r"schema \d+, and this hpcopt reads up to \d+") as found:
            newest_valid(comm, directory)
        assert found.value.exit_status == 4

    on_ranks(2, go_on)
    assert published_steps(directory) == [1, 2]


def test_a_rank_that_sees_other_files_is_no_reason_to_set_them_aside(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small(directory, [1])
    whole = restore.file_findings

    def blind(path: Path, file: Any, made: Any) -> list[restore.Finding]:
        return (
            [restore.Finding(path / file.name, "is missing")] if file.name == "rank0001.h5" else whole(path, file, made)
        )

    monkeypatch.setattr(restore, "file_findings", blind)

    def go_on(comm: Any) -> None:
        with pytest.raises(CheckpointError, match=r"rank0001.h5: is missing.*file system that all ranks share"):
            newest_valid(comm, directory)

    on_ranks(2, go_on)
    assert published_steps(directory) == [1]


def test_memory_that_does_not_fit_is_an_error_on_all_ranks(directory: Path) -> None:
    (path,) = write_small(directory, [1])

    def go_on(comm: Any) -> None:
        odd = comm.rank == 1
        with pytest.raises(UsageError, match="cannot be read into float32 of shape"):
            restore.restore(comm, path, {"b": np.zeros(8 if odd else 9, np.float32)})
        with pytest.raises(UsageError, match="nothing under the name 'bias'"):
            restore.restore(comm, StoredCheckpoint(path), {"bias": np.zeros(9)} if odd else {})

    on_ranks(3, go_on)


def test_damage_that_comes_later_is_an_error_on_all_ranks(directory: Path) -> None:
    (path,) = write_small(directory, [1])
    (path / "rank0001.h5").unlink()

    def go_on(comm: Any) -> None:
        with pytest.raises(CheckpointError, match=r"'w' in rank0001.h5: it cannot be opened"):
            restore.restore(comm, path)

    on_ranks(2, go_on)
