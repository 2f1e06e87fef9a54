from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcopt.checkpoint import folder, store
from hpcopt.checkpoint.folder import BEST, LATEST, pointed, published_steps
from hpcopt.checkpoint.retention import Retention
from hpcopt.checkpoint.store import CheckpointStore
from hpcopt.checkpoint.stored import StoredCheckpoint
from hpcopt.checkpoint.verify import verify
from hpcopt.checkpoint.writer import Point
from hpcopt.comm.communicator import Communicator
from hpcopt.errors import CheckpointError, UsageError
from tests.support.checkpoints import SMALL, list_valid, own, replicated, same, write
from tests.support.refusals import files_up_to
from tests.support.simulated import on_ranks

EVERYWHERE = (Point.OPENED, Point.HALFWAY, Point.CLOSED)


def hidden(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith(".")]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_what_is_saved_on_some_ranks_is_read_whole(directory: Path, ranks: int) -> None:
    saved = write(directory, [3, 4], ranks)
    assert [each.path.name for each in saved] == ["step-00000003", "step-00000004"]
    for each in saved:
        with StoredCheckpoint(each.path) as stored:
            assert verify(each.path) == []
            assert sum(path.stat().st_size for path in each.path.glob("rank*")) == each.bytes
            assert all(same(stored.replicated(name), value) for name, value in replicated(stored.step).items())
            for rank in range(ranks):
                assert all(same(stored.own(rank, name), value) for name, value in own(rank).items())


def test_the_folder_holds_checkpoints_pointers_and_nothing_else(directory: Path, comm: Communicator) -> None:
    made = CheckpointStore(comm, directory)
    for step in (1, 2, 3, 4):
        made.save(step, SMALL, best=step == 2)
    assert sorted(os.listdir(directory)) == ["best", "latest", "run", "step-00000002", "step-00000003", "step-00000004"]
    assert (pointed(directory, LATEST), pointed(directory, BEST)) == (4, 2)


def test_every_checkpoint_bears_the_identity_of_its_run(directory: Path, tmp_path: Path, comm: Communicator) -> None:
    runs = {CheckpointStore(comm, directory).run for _ in range(2)} | {CheckpointStore(comm, tmp_path / "other").run}
    assert len(runs) == 2
    path = CheckpointStore(comm, directory).save(1, {}).path
    with StoredCheckpoint(path) as stored:
        assert stored.run == CheckpointStore(comm, directory).run


@pytest.mark.parametrize(
    ("point", "rank"), [*((point, 0) for point in Point), *((point, 1) for point in Point if point in EVERYWHERE)]
)
def test_a_failure_at_any_point_leaves_the_old_set(directory: Path, point: Point, rank: int) -> None:
    write(directory, [1, 2])
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    injected = []

    def save(comm: Any) -> str:
        def fail(passed: Point) -> None:
            if passed is point and comm.rank == rank:
                injected.append(passed)
                raise OSError(errno.ENOSPC, "No space left on device")

        made = CheckpointStore(comm, directory, passing=fail)
        with pytest.raises(CheckpointError) as found:
            made.save(3, replicated(3), own(comm.rank))
        assert found.value.collective
        return str(found.value)

    texts = on_ranks(3, save)
    assert len(injected) == 1
    assert len(set(texts)) == 1, "every rank says the same"
    assert f"on rank {rank} (here)" in texts[0]
    assert "No space left on device" in texts[0]
    assert hidden(directory) == []
    # Once the folder has its name, it is whole: only the promise that it is on the disk is missing.
    renamed = point is Point.BEFORE_SYNC
    assert published_steps(directory) == [1, 2, 3][: 2 + renamed]
    assert len(list_valid(directory)) == 2 + renamed
    assert all(path.read_bytes() == content for path, content in before.items())


def test_all_is_on_the_disk_before_it_has_a_name_and_the_name_before_the_save_is_over(
    directory: Path, comm: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = CheckpointStore(comm, directory)
    done: list[str] = []
    rename, sync = os.rename, os.fsync

    def note_sync(descriptor: int) -> None:
        done.append("sync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def note_rename(source: Path, target: Path) -> None:
        done.append(f"rename to {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "rename", note_rename)
    made.save(1, SMALL)
    done[2] = done[2].split(".")[1]
    expected = [
        "sync rank0000.h5",
        "sync manifest.json",
        "step-00000001",
        "rename to step-00000001",
        "sync checkpoints",
    ]
    assert done[:5] == expected


def test_after_a_failure_the_next_save_succeeds(directory: Path, comm: Communicator) -> None:
    failing = [OSError(errno.ENOSPC, "No space left on device"), MemoryError(), None]

    def fail(passed: Point) -> None:
        if passed is Point.HALFWAY and (error := failing.pop(0)) is not None:
            raise error

    made = CheckpointStore(comm, directory, passing=fail)
    for reason in ("No space left on device", "MemoryError"):
        with pytest.raises(CheckpointError, match=f"could not be written: {reason}"):
            made.save(1, SMALL)
    assert verify(made.save(1, SMALL).path) == []
    assert failing == []


def test_a_bug_while_writing_is_one_on_all_ranks_and_leaves_no_folder(directory: Path) -> None:
    def save(comm: Any) -> None:
        def fail(passed: Point) -> None:
            if comm.rank == 1:
                raise ZeroDivisionError("one by nothing")

        made = CheckpointStore(comm, directory, passing=fail)
        with pytest.raises(RuntimeError, match=r"on rank 1 .* one by nothing"):
            made.save(1, SMALL)

    on_ranks(2, save)
    assert hidden(directory) == []
    assert published_steps(directory) == []


def test_a_limit_of_the_file_size_is_an_error_and_no_crash(directory: Path, comm: Communicator) -> None:
    made = CheckpointStore(comm, directory)
    made.save(1, {"w": np.zeros(1000)})
    with files_up_to(1_000_000), pytest.raises(CheckpointError, match=r"step-00000002 could not be .*File too large"):
        made.save(2, {"w": np.zeros(10**6)})
    assert [path.name for path in list_valid(directory)] == ["step-00000001"]
    assert hidden(directory) == []
    assert verify(made.save(3, {"w": np.zeros(1000)}).path) == []


def test_a_folder_that_cannot_be_made_is_an_error_with_words(tmp_path: Path, comm: Communicator) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(CheckpointError, match="could not be used: Not a directory") as found:
        CheckpointStore(comm, tmp_path / "run" / "checkpoints")
    assert found.value.exit_status == 74


def test_a_folder_that_vanished_is_an_error_and_no_crash(directory: Path, comm: Communicator) -> None:
    made = CheckpointStore(comm, directory)
    shutil.rmtree(directory)
    with pytest.raises(CheckpointError, match="could not be written: No such file"):
        made.save(1, SMALL)


def test_ranks_that_do_not_see_each_others_files_are_told(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = store.write_rank_file

    def elsewhere(path: Path, rank: int, *rest: Any) -> Any:
        done = written(path, rank, *rest)
        if rank == 1:
            os.rename(path / done.file.name, directory.parent / "on another machine")
        return done

    monkeypatch.setattr(store, "write_rank_file", elsewhere)
    with pytest.raises(CheckpointError, match=r"does not see all of rank0001.h5.*file system that all ranks share"):
        write(directory, [1])
    assert published_steps(directory) == []


def test_a_checkpoint_of_the_same_step_is_replaced(directory: Path) -> None:
    write(directory, [1, 2])
    write(directory, [2], seed=40)
    assert hidden(directory) == []
    assert [path.name for path in list_valid(directory)] == ["step-00000001", "step-00000002"]
    with StoredCheckpoint(directory / "step-00000002") as stored:
        assert stored.replicated("loop/iteration") == replicated(42)["loop/iteration"]


@pytest.mark.parametrize("how", ["empty", "manifest gone", "manifest damaged", "file short"])
def test_a_folder_of_that_name_that_is_no_checkpoint_is_set_aside(directory: Path, how: str) -> None:
    (saved,) = write(directory, [1])
    if how == "empty":
        shutil.rmtree(saved.path)
        saved.path.mkdir()
    elif how == "manifest gone":
        (saved.path / "manifest.json").unlink()
    elif how == "manifest damaged":
        (saved.path / "manifest.json").write_text("{}")
    else:
        os.truncate(saved.path / "rank0001.h5", 100)
    write(directory, [1])
    assert [path.name for path in list_valid(directory)] == ["step-00000001"]
    assert [path.name for path in folder.set_aside(directory)] == ["step-00000001.bad"]


def test_a_rename_that_fails_brings_the_old_one_back(
    directory: Path, comm: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = CheckpointStore(comm, directory)
    path = made.save(1, SMALL).path
    rename = os.rename

    def fail(source: Path, target: Path) -> None:
        if str(source).endswith(".tmp"):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(folder.os, "rename", fail)
    with pytest.raises(CheckpointError, match="Input/output error"):
        made.save(1, SMALL | {"radius": 3.0})
    assert verify(path) == []
    assert StoredCheckpoint(path).scalars == {"radius": 0.5}
    assert hidden(directory) == []


def test_leftovers_go_when_the_next_run_starts(directory: Path) -> None:
    write(directory, [1])
    shutil.copytree(directory / "step-00000001", directory / ".step-00000002.0123ab.tmp")
    on_ranks(3, lambda comm: CheckpointStore(comm, directory))
    assert hidden(directory) == []


def test_nothing_is_deleted_before_its_successor_is_there(directory: Path, comm: Communicator) -> None:
    there: list[list[int]] = []
    made = CheckpointStore(comm, directory, passing=lambda point: there.append(published_steps(directory)))
    for step in range(1, 5):
        made.save(step, SMALL)
    last = there[-len(Point) :]
    assert last == [[2, 3]] * (len(Point) - 1) + [[2, 3, 4]]
    assert published_steps(directory) == [3, 4]


def test_a_deletion_that_fails_is_logged_and_the_run_goes_on(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, comm: Communicator
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy", str(path))

    made = CheckpointStore(comm, directory)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(folder, "remove", refuse)
        for step in (1, 2, 3):
            made.save(step, SMALL)
    assert "could not be deleted: Device or resource busy" in caplog.text
    assert published_steps(directory) == [1, 2, 3]
    made.save(4, SMALL)
    assert published_steps(directory) == [3, 4], "the next save tries again"


def test_a_pointer_that_cannot_be_written_is_logged(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, comm: Communicator
) -> None:
    def refuse(directory: Path, name: str, step: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    made = CheckpointStore(comm, directory)
    monkeypatch.setattr(folder, "point", refuse)
    with caplog.at_level(logging.WARNING):
        saved = made.save(1, SMALL)
    assert "a pointer to it" in caplog.text
    assert verify(saved.path) == []


def test_the_best_stays_while_others_go(directory: Path, comm: Communicator) -> None:
    made = CheckpointStore(comm, directory, Retention(last=2, every=10))
    for step in (2, 8, 10, 15, 20, 25, 30):
        made.save(step, SMALL, best=step in (2, 8))
    assert published_steps(directory) == [8, 10, 20, 25, 30]


@pytest.mark.parametrize("step", [-1, 1.0, True, "1"])
def test_a_step_is_a_whole_number(directory: Path, comm: Communicator, step: Any) -> None:
    with pytest.raises(UsageError, match="must be a whole number"):
        CheckpointStore(comm, directory).save(step, {})


@pytest.mark.parametrize("how", ["name", "shape", "type", "step"])
def test_ranks_that_would_save_different_things_are_told(directory: Path, how: str) -> None:
    def save(comm: Any) -> None:
        odd = comm.rank == 1
        name = "v" if how == "name" and odd else "w"
        array = np.zeros(3 + (how == "shape" and odd), np.float32 if how == "type" and odd else np.float64)
        with pytest.raises(UsageError, match="about to save different things") as found:
            CheckpointStore(comm, directory).save(1 + (how == "step" and odd), {name: array})
        assert found.value.collective

    on_ranks(3, save)
    assert published_steps(directory) == []
    assert hidden(directory) == []


def test_something_that_cannot_be_stored_on_one_rank_is_an_error_on_all(directory: Path) -> None:
    def save(comm: Any) -> None:
        with pytest.raises(UsageError, match="'bad'"):
            CheckpointStore(comm, directory).save(1, {}, {"bad": None} if comm.rank == 2 else {})

    on_ranks(3, save)
