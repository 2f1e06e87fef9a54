import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcopt.errors import UsageError
from hpcopt.train.run import lock as run_lock
from hpcopt.train.run.directory import RunDirectory, was_cut_off, write_json
from hpcopt.train.run.environment import environment


def write_lock(directory: Path, **changes: object) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    owner = {**vars(run_lock.this_process()), **changes}
    lock = directory / "lock"
    lock.write_text(json.dumps(owner))
    return lock


@pytest.fixture
def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def told(child: "subprocess.Popen[str]") -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


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


def test_a_lock_of_a_dead_process_is_taken_over_with_a_note(
    tmp_path: Path, dead_pid: int, caplog: pytest.LogCaptureFixture
) -> None:
    write_lock(tmp_path / "a", pid=dead_pid)
    with RunDirectory.create(tmp_path / "a", fresh=False):
        assert "Taking over" in caplog.text
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["log"]


def test_a_lock_of_an_earlier_process_with_the_same_number_is_taken_over(tmp_path: Path) -> None:
    if run_lock.this_process().started is None:
        pytest.skip("this system does not tell when a process started")
    write_lock(tmp_path / "a", started=1)
    RunDirectory.create(tmp_path / "a", fresh=False).close()


def test_a_lock_of_a_living_process_is_refused_with_its_host_pid_and_job(tmp_path: Path) -> None:
    write_lock(tmp_path / "a", job="4711")
    with pytest.raises(UsageError, match=rf"process {os.getpid()} on {run_lock.this_process().host} \(job 4711\)"):
        RunDirectory.create(tmp_path / "a", fresh=False)


@pytest.mark.parametrize("elsewhere", [{"host": "node17"}, {"namespace": "pid:[7]"}])
def test_a_lock_from_elsewhere_is_refused_until_it_has_not_been_touched_for_long(
    tmp_path: Path, elsewhere: dict[str, str]
) -> None:
    lock = write_lock(tmp_path / "a", **elsewhere)
    with pytest.raises(UsageError, match="in use"):
        RunDirectory.create(tmp_path / "a", fresh=False)
    old = time.time() - run_lock.STALE_SECONDS - 1
    os.utime(lock, (old, old))
    RunDirectory.create(tmp_path / "a", fresh=False).close()


@pytest.mark.parametrize(
    ("variables", "before", "again"),
    [
        ({"SLURM_JOB_ID": "4711", "SLURM_RESTART_COUNT": "2"}, 1, 3),
        ({"LSB_JOBID": "4711", "LSB_RESTART": "Y"}, 0, 2),
        ({"JOB_ID": "4711", "RESTARTED": "1"}, 0, 2),
    ],
)
def test_a_requeued_job_takes_over_the_lock_of_its_earlier_start_on_another_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], before: int, again: int
) -> None:
    for name in run_lock.JOB_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    earlier = write_lock(tmp_path / "a", host="node17", job="4711", restarts=before)
    assert not run_lock.is_alive(earlier)
    RunDirectory.create(tmp_path / "a", fresh=False).close()
    for other in ({"restarts": run_lock.job_restarts()}, {"restarts": again}, {"restarts": 0, "job": "4712"}):
        lock = write_lock(tmp_path / "b", **{"host": "node17", "job": "4711", **other})
        assert run_lock.is_alive(lock), "another program of this start, a later start, another job"
        with pytest.raises(UsageError, match="in use"):
            RunDirectory.create(tmp_path / "b", fresh=False)


def test_a_lock_that_is_being_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("")
    with pytest.raises(UsageError, match="unknown process"):
        RunDirectory.create(tmp_path, fresh=False)


def test_writing_the_status_touches_the_lock(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path, fresh=False) as run:
        os.utime(run.path / "lock", (1, 1))
        run.write_status(ranks=2)
        assert time.time() - (run.path / "lock").stat().st_mtime < 60


def test_closing_leaves_a_lock_that_another_process_took_over(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, fresh=False)
    write_lock(tmp_path, pid=1)
    run.close()
    run.abandon()
    assert (tmp_path / "lock").exists()


def test_a_lock_that_another_process_just_took_over_is_put_back(
    tmp_path: Path, dead_pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = write_lock(tmp_path, pid=dead_pid)
    real = os.rename

    def too_late(source: Path, target: Path) -> None:
        if source == lock and not list(tmp_path.glob("lock.*")):
            write_lock(tmp_path, job="the other")
        real(source, target)

    monkeypatch.setattr(os, "rename", too_late)
    with pytest.raises(UsageError, match="job the other"):
        RunDirectory.create(tmp_path, fresh=False)
    assert json.loads(lock.read_text())["job"] == "the other"


def test_of_many_processes_one_gets_a_dead_lock(tmp_path: Path, dead_pid: int) -> None:
    write_lock(tmp_path / "a", pid=dead_pid)
    program = (
        "import sys; from pathlib import Path; from hpcopt.train.run.directory import RunDirectory\n"
        "from hpcopt.errors import UsageError\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "try: RunDirectory.create(Path(sys.argv[1]), fresh=False)\n"
        "except UsageError: print('refused', flush=True)\n"
        "else: print('holds', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a")]
    environ = {**os.environ, "PYTHONPATH": str(Path(run_lock.__file__).parents[3])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(subprocess.Popen(command, env=environ, text=True, **pipes)) for _ in range(4)]
        assert [told(child) for child in children] == ["ready"] * 4
        for child in children:
            child.stdin.write("go\n")
            child.stdin.flush()
        assert sorted(told(child) for child in children) == ["holds", "refused", "refused", "refused"]


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
