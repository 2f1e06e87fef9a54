"""The lock of a run directory: who holds it, who is gone, and who takes it over."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcopt.errors import UsageError
from hpcopt.train.run import lock as run_lock
from hpcopt.train.run.directory import RunDirectory


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


def test_a_process_is_told_from_others_by_when_it_started() -> None:
    if run_lock.this_process().started is None:
        pytest.skip("this system does not tell when a process started")

    def seconds_up() -> float:
        return float(Path("/proc/uptime").read_text().split()[0])

    before = seconds_up()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        started = run_lock._start_time(child.pid)
        assert started is not None
        assert before - 0.1 <= started / os.sysconf("SC_CLK_TCK") <= seconds_up() + 0.1


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
