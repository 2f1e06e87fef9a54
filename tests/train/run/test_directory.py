import errno
import json
import os
from pathlib import Path

import pytest

from hpcopt.errors import UsageError
from hpcopt.train.run import lock as run_lock
from hpcopt.train.run.directory import RunDirectory, was_cut_off, write_json
from hpcopt.train.run.environment import environment


def finished_run(path: Path) -> None:
    with RunDirectory.create(path, fresh=False) as run:
        run.write_status(status="finished")


def test_creates_the_directory_its_parents_and_the_log_folder(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "runs" / "a", fresh=False) as run:
        assert run.path == tmp_path / "runs" / "a"
        assert (run.path / "log").is_dir()
        assert (run.path / "lock").exists()
    assert not (run.path / "lock").exists()


def test_refuses_a_directory_that_holds_a_run(tmp_path: Path) -> None:
    finished_run(tmp_path / "a")
    with pytest.raises(UsageError, match="already holds a run"):
        RunDirectory.create(tmp_path / "a", fresh=False)


def saved_run(path: Path) -> None:
    finished_run(path)
    (path / "checkpoints" / "step-00000007").mkdir(parents=True)


def test_a_run_that_was_saved_may_go_on(tmp_path: Path) -> None:
    saved_run(tmp_path / "a")
    with RunDirectory.create(tmp_path / "a", fresh=False, resumable=True) as run:
        assert (run.path / "status.json").exists()
    with pytest.raises(UsageError, match=r"already holds a run, which checkpoint\.resume = false keeps"):
        RunDirectory.create(tmp_path / "a", fresh=False, resumable=False)


def test_checkpoints_alone_are_a_run(tmp_path: Path) -> None:
    (tmp_path / "a" / "checkpoints" / "step-00000007").mkdir(parents=True)
    with pytest.raises(UsageError, match="already holds a run"):
        RunDirectory.create(tmp_path / "a", fresh=False)


def test_a_run_of_which_nothing_was_saved_is_not_overwritten(tmp_path: Path) -> None:
    finished_run(tmp_path / "a")
    with pytest.raises(UsageError, match="already holds a run, of which nothing was saved to go on from"):
        RunDirectory.create(tmp_path / "a", fresh=False, resumable=True)


@pytest.mark.parametrize("saves", [True, False])
def test_a_run_that_was_killed_before_it_was_first_saved_may_begin_anew(tmp_path: Path, saves: bool) -> None:
    """But not one that was never to be saved: its record is all there will ever be of it."""
    with RunDirectory.create(tmp_path / "a", fresh=False) as run:
        run.write_status(saves=saves)
    assert was_cut_off(tmp_path / "a") is saves
    if saves:
        RunDirectory.create(tmp_path / "a", fresh=False, resumable=True).close()
    else:
        with pytest.raises(UsageError, match="nothing was saved"):
            RunDirectory.create(tmp_path / "a", fresh=False, resumable=True)


def test_a_lock_that_cannot_be_written_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a full disk: the file can be made, but takes no content."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_lock.json, "dump", full)
    with pytest.raises(UsageError, match="cannot be written: No space left on device"):
        RunDirectory.create(tmp_path / "runs" / "a", fresh=False)
    assert list(tmp_path.iterdir()) == []


def test_accepts_an_existing_directory_without_a_run(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with RunDirectory.create(tmp_path, fresh=False) as run:
        assert (run.path / "notes.txt").read_text() == "mine"


def test_fresh_moves_the_old_run_aside_and_deletes_nothing(tmp_path: Path) -> None:
    for number in range(3):
        with RunDirectory.create(tmp_path / "a", fresh=True) as run:
            run.write_job(f"number = {number}\n")
    kept = sorted(tmp_path.glob("a.before-*-*/job.toml"))
    assert {path.read_text() for path in kept} == {"number = 0\n", "number = 1\n"}
    assert (tmp_path / "a" / "job.toml").read_text() == "number = 2\n"
    assert not list(tmp_path.glob("a.before-*/lock"))


def test_fresh_does_not_touch_a_run_that_is_going_on(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "a", fresh=False) as run:
        run.write_status()
        with pytest.raises(UsageError, match=f"process {os.getpid()}"):
            RunDirectory.create(tmp_path / "a", fresh=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_run_that_is_going_on_is_in_use_rather_than_there_already(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "a", fresh=False) as run:
        run.write_status()
        with pytest.raises(UsageError, match="in use"):
            RunDirectory.create(tmp_path / "a", fresh=False)


def test_refuses_a_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        RunDirectory.create(tmp_path / "a", fresh=False)


def test_refuses_a_parent_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        RunDirectory.create(tmp_path / "file" / "x" / "a", fresh=False)


def test_leaves_nothing_behind_when_the_lock_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished_run(tmp_path / "old")
    real = os.open

    def full(path: object, flags: int, *rest: int) -> int:
        if str(path) == str(tmp_path / "old" / "lock") and not (tmp_path / "old" / "status.json").exists():
            raise OSError(28, "No space left on device", str(path))
        if "new" in str(path):
            raise OSError(28, "No space left on device", str(path))
        return real(path, flags, *rest)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(UsageError, match="No space left"):
        RunDirectory.create(tmp_path / "some" / "new", fresh=False)
    with pytest.raises(UsageError, match="No space left"):
        RunDirectory.create(tmp_path / "old", fresh=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]
    assert (tmp_path / "old" / "status.json").exists()


def test_abandoning_a_start_restores_what_was_there(tmp_path: Path) -> None:
    finished_run(tmp_path / "a")
    run = RunDirectory.create(tmp_path / "a", fresh=True)
    run.write_job("x = 1\n")
    run.write_status()
    (run.path / "log" / "rank0000.log").write_text("line")
    run.abandon()
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    assert json.loads((tmp_path / "a" / "status.json").read_text())["status"] == "finished"
    assert not (tmp_path / "a" / "job.toml").exists()


def test_abandoning_a_resumed_run_keeps_its_files(tmp_path: Path) -> None:
    saved_run(tmp_path / "a")
    RunDirectory.create(tmp_path / "a", fresh=False, resumable=True).abandon()
    assert (tmp_path / "a" / "status.json").exists()
    assert (tmp_path / "a" / "log").exists()


def test_abandoning_on_a_full_disk_loses_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        path.touch()
        os.truncate(path, 0)
        raise OSError(errno.ENOSPC, "No space left on device")

    saved_run(tmp_path / "a")
    before = (tmp_path / "a" / "status.json").read_bytes()
    run = RunDirectory.create(tmp_path / "a", fresh=False, resumable=True)
    monkeypatch.setattr(Path, "write_bytes", full)
    run.abandon()
    assert (tmp_path / "a" / "status.json").read_bytes() == before
    assert not list((tmp_path / "a").glob(".status*"))


def test_the_status_keeps_its_fields_and_is_valid_json(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path, fresh=False) as run:
        run.write_status(solver="sgd", summary={"loss": float("nan")})
        run.write_status(ranks=3)
        status = json.loads((tmp_path / "status.json").read_text(), parse_constant=pytest.fail)
    assert status["status"] == "running"
    assert (status["solver"], status["ranks"], status["summary"]) == ("sgd", 3, {"loss": None})
    assert status["pid"] == os.getpid()
    assert status["started"] <= status["updated"]


def test_a_status_that_cannot_be_written_does_not_stop_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunDirectory.create(tmp_path, fresh=False) as run:
        run.write_status(ranks=1)

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        run.write_status(ranks=2)
        assert "No space left on device" in caplog.text
        assert json.loads((tmp_path / "status.json").read_text())["ranks"] == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "log", "status.json"]
        with pytest.raises(UsageError, match="No space left"):
            run.write_environment({})


def test_the_environment_names_versions_machine_and_launch(tmp_path: Path) -> None:
    facts = environment(mpi_library="Some MPI 1.0\0", hosts=["a", "b"])
    write_json(tmp_path / "environment.json", facts)
    assert json.loads((tmp_path / "environment.json").read_text()) == facts
    assert facts["mpi_library"] == "Some MPI 1.0"
    assert facts["packages"]["numpy"]
    assert facts["cpus_allowed"] >= 1
    assert facts["command"]
