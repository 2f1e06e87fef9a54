"""The script: what sbatch reads of it, and what bash does with it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hpcopt.cluster.launcher import Launcher
from hpcopt.cluster.options import SlurmOptions
from hpcopt.cluster.script import Script, passed_on
from hpcopt.cluster.sweep import make_tasks
from hpcopt.errors import UsageError
from hpcopt.train.run.directory import write_json
from tests.support.processes import catches
from tests.support.programs import install

SRUN = Launcher(("srun", "--mpi=pmi2"), "it fits")
MPIRUN = Launcher(("mpirun",), "it fits")


def make(
    options: SlurmOptions | None = None, launcher: Launcher = SRUN, directory: str = "out", **changes: object
) -> Script:
    run = ["hpcopt", "run", "a.toml"]
    return Script("a", options or SlurmOptions(), launcher, run, directory, "hpcopt submit", **changes)  # type: ignore[arg-type]


def directives(script: Script) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.text().splitlines() if line.startswith("#SBATCH")]


def test_what_the_table_says_is_what_sbatch_reads() -> None:
    options = SlurmOptions("fast", "me", "01:00:00", 2, 4, 8, gpus_per_task=1, save_before=300)
    assert directives(make(options)) == [
        "--job-name=a",
        "--partition=fast",
        "--account=me",
        "--nodes=2",
        "--ntasks-per-node=4",
        "--cpus-per-task=8",
        "--gpus-per-task=1",
        "--time=01:00:00",
        "--signal=B:USR1@300",
        "--requeue",
        "--open-mode=append",
    ]


def test_what_is_not_said_is_left_to_the_cluster() -> None:
    assert [line.partition("=")[0] for line in directives(make())] == [
        "--job-name",
        "--nodes",
        "--ntasks-per-node",
        "--signal",
        "--requeue",
        "--open-mode",
    ]


def test_all_directives_stand_before_the_first_command() -> None:
    asked = "hpcopt submit a.toml --set 'model.widths=[\n4]'"
    lines = replace(make(SlurmOptions(setup=["module load mpich"])), command=asked).text().splitlines()
    last = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert lines[0] == "#!/bin/bash"
    assert all(line.startswith("#") for line in lines[:last])
    assert "module load mpich" in lines[last:]


def test_mpirun_is_given_all_devices_of_a_node() -> None:
    options = SlurmOptions(ntasks_per_node=4, gpus_per_task=2)
    assert "--gpus-per-node=8" in directives(make(options, MPIRUN))
    assert "--gpus-per-task=2" in directives(make(options, SRUN))


def test_options_can_be_left_out_added_and_replaced() -> None:
    options = SlurmOptions(skip=["--ntasks-per-node", "--requeue"], extra=["--mem=8G", "-C fast", "-N 3-5"])
    found = directives(make(options))
    assert {"--mem=8G", "-C fast", "--nodes=3-5"} <= set(found)
    assert not {"--ntasks-per-node=1", "--requeue", "--nodes=1"} & set(found)


def test_what_is_not_there_cannot_be_left_out() -> None:
    with pytest.raises(UsageError, match=r"'--ntask-per-node' is not an option.*did you mean '--ntasks-per-node'"):
        make(SlurmOptions(skip=["--ntask-per-node"])).text()


def test_another_way_to_count_ranks_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--ntasks would contradict"):
        make(SlurmOptions(extra=["--ntasks=8"])).text()
    assert "--ntasks=8" in directives(make(SlurmOptions(skip=["--ntasks-per-node"], extra=["--ntasks=8"])))


def test_words_of_a_command_line_become_options() -> None:
    assert passed_on(["--mem", "8G", "--exclusive", "--qos=long", "-C", "fast"]) == [
        "--mem=8G",
        "--exclusive",
        "--qos=long",
        "-C fast",
    ]
    for words in (["job.toml"], ["--mem", "8G", "16G"], ["--qos=long", "x"]):
        with pytest.raises(UsageError, match=r"belongs to no option.*job file comes first"):
            passed_on(words)


def test_names_with_blanks_and_quotes_stay_what_they_are(tmp_path: Path) -> None:
    script = Script("a job", SlurmOptions(), Launcher(("printf", "%s\n"), ""), ["it's", "a b", "$HOME"], "out", "x")
    assert "--job-name='a job'" in directives(script)
    assert run(script, tmp_path).stdout == "it's\na b\n$HOME\n"


def started(script: Script, folder: Path, **variables: str) -> subprocess.Popen[str]:
    """The script under bash, as Slurm would start it, with a scontrol that writes down what it is told."""
    install(folder, "scontrol", f'echo "$*" >> {folder}/told')
    (folder / "script").write_text(script.text())
    around = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "BASH_ENV"))}
    environ = around | {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "12"} | variables
    return subprocess.Popen(
        ["bash", str(folder / "script")], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(script: Script, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    process = started(script, folder, **variables)
    out, err = process.communicate(timeout=30)
    return subprocess.CompletedProcess("script", process.returncode, out, err)


def told(folder: Path) -> str:
    return (folder / "told").read_text() if (folder / "told").exists() else ""


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [(0, "", False), (3, "", False), (75, "", True), (75, "1", True), (75, "2", False)],
)
def test_a_saved_run_is_requeued_a_bounded_number_of_times(
    tmp_path: Path, status: int, restarts: str, requeued: bool
) -> None:
    install(tmp_path, "srun", f"exit {status}")
    variables = {"SLURM_RESTART_COUNT": restarts} if restarts else {}
    done = run(make(SlurmOptions(max_requeues=2)), tmp_path, **variables)
    assert done.returncode == status
    assert told(tmp_path) == ("requeue 12\n" if requeued else "")
    assert ("not finished after 2 new starts" in done.stderr) == (status == 75 and not requeued)


@pytest.mark.parametrize(
    ("status", "said", "again"),
    [
        (0, "running", True),
        (137, "running", True),
        (0, "finished", False),
        (137, "failed", False),
        (2, "running", False),
        (5, "running", False),
        (0, None, False),
    ],
)
@pytest.mark.parametrize("array", [False, True])
def test_a_run_that_could_not_say_how_it_ended_is_requeued(
    tmp_path: Path, status: int, said: str | None, again: bool, array: bool
) -> None:
    """Unless the launcher says that it did not begin, or ended as it was told. The folder's name has a blank."""
    install(tmp_path, "srun", f"exit {status}")
    tasks = make_tasks(["run.seed=1,2"], f"{tmp_path}/a b") if array else []
    folder = Path(tasks[0].directory if array else f"{tmp_path}/a b")
    folder.mkdir()
    if said is not None:
        write_json(folder / "status.json", {"ranks": 2, "status": said})
    variables = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "12"} if array else {}
    done = run(make(directory=str(folder), tasks=tasks), tmp_path, **variables)
    assert done.returncode == (75 if again else status)
    assert told(tmp_path) == ((f"requeue 12{'_1' if array else ''}\n") if again else "")


def test_with_no_requeues_the_status_is_all(tmp_path: Path) -> None:
    install(tmp_path, "srun", "exit 75")
    assert run(make(SlurmOptions(max_requeues=0)), tmp_path).returncode == 75
    assert told(tmp_path) == ""


def test_the_signal_reaches_the_run_and_its_status_comes_back(tmp_path: Path) -> None:
    # It goes on after the signal, as a run that saves does, and is asked twice.
    trap = f"trap 'let n+=1; touch {tmp_path}/asked' USR1; touch {tmp_path}/ready"
    install(tmp_path, "srun", f"{trap}; while ((n < 2)); do sleep 0.05; done; exit 75")
    process = started(make(), tmp_path)
    wait_until((tmp_path / "ready").exists, process)
    wait_until(lambda: catches(process.pid, signal.SIGUSR1), process)
    process.send_signal(signal.SIGUSR1)
    wait_until((tmp_path / "asked").exists, process)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert told(tmp_path) == "requeue 12\n"


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 30
    while not ready():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_each_task_of_an_array_runs_its_own_and_is_requeued_alone(tmp_path: Path) -> None:
    install(tmp_path, "srun", 'echo "$*"; exit 75')
    tasks = make_tasks(["run.seed=1,2", "model.widths=[4, 5]"], "runs/a b")
    script = make(tasks=tasks)
    assert "--array=1-2" in directives(script)
    done = run(script, tmp_path, SLURM_ARRAY_TASK_ID="2", SLURM_ARRAY_JOB_ID="10")
    shown = (
        "--mpi=pmi2 hpcopt run a.toml --run-dir runs/a b-seed=2-widths=4_5 --set run.seed=2 --set model.widths=[4, 5]\n"
    )
    assert done.stdout == shown
    # The number 10 alone would requeue all of them.
    assert told(tmp_path) == "requeue 10_2\n"


def test_setup_lines_run_before_and_the_environment_is_found(tmp_path: Path) -> None:
    install(tmp_path / "bin", "hpcopt", 'echo "$LOADED $*"')
    options = SlurmOptions(setup=["export LOADED='a module'"])
    done = run(make(options, Launcher(("env",), ""), path=str(tmp_path / "bin")), tmp_path)
    assert done.stdout == "a module run a.toml\n", done.stderr
