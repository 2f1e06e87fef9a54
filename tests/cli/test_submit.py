"""``hpcopt submit``: from the command line to sbatch, with programs in the place of Slurm's."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hpcopt.cli.main import main
from hpcopt.comm.faults import RANK_VARIABLES
from tests.support.fresh import modules_after_command
from tests.support.programs import install

ROOT = Path(__file__).parents[2]
READY = sorted((ROOT / "slurm").glob("*.sbatch"))
JOB = """
[data]
source = "digits"
[slurm]
time = "02:00:00"
account = "mine"
launcher = "mpirun"
extra = ["--mem=1G"]
"""
PLAIN = ["--nodes", "2", "--ntasks-per-node", "2"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a job file, in which one is; its ``bin`` holds hpcopt and comes first on PATH, nothing of Slurm."""
    for name in RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name in ("python", "hpcopt"):
        install(tmp_path / "bin", name, "exit 99")
    (tmp_path / "job.toml").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/bin{os.pathsep}/usr/bin")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    return tmp_path


def directives(script: str) -> set[str]:
    return {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")}


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_the_ready_scripts_are_what_the_command_in_their_head_prints(
    path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    _, *arguments = shlex.split(path.read_text().splitlines()[2].removeprefix("#"))
    assert main([*arguments, "--print"]) == 0
    assert capsys.readouterr().out == path.read_text()
    subprocess.run(["/bin/bash", "-n", str(path)], check=True, timeout=30)


def test_there_is_a_ready_script_for_each_kind_of_job() -> None:
    assert [path.stem for path in READY] == ["gpus", "multi-node", "single-node", "sweep"]


def test_the_command_line_wins_over_the_table_and_the_rest_goes_to_sbatch(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "job.toml", *PLAIN, "-t", "00:30:00", "--qos", "long", "--exclusive", "--print"]) == 0
    shown = capsys.readouterr().out
    assert directives(shown) >= {
        *("--nodes=2", "--ntasks-per-node=2", "--time=00:30:00", "--account=mine"),
        *("--mem=1G", "--qos=long", "--exclusive"),
    }
    assert "\nmpirun hpcopt run job.toml &\n" in shown
    assert not (place / "runs").exists()


def test_settings_and_the_run_directory_go_to_the_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", "job.toml", "--set", "run.name=a b", "--set", "model.widths=[4, 5]", "--run-dir", "r", "--print"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "--job-name='a b'" in directives(shown)
    assert "hpcopt run job.toml --set 'run.name=a b' --set 'model.widths=[4, 5]' --run-dir r &\n" in shown


def test_a_job_in_another_folder_is_named_in_full(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "job.toml", "--chdir=/tmp", "--print"]) == 0
    assert f"hpcopt run {place / 'job.toml'} &" in capsys.readouterr().out


def test_a_program_that_is_not_on_path_is_found_all_the_same(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    assert main(["submit", "job.toml", "--print"]) == 0
    assert f'\nexport PATH={place / "bin"}:"$PATH"\n' in capsys.readouterr().out
    (place / "bin" / "hpcopt").unlink()
    assert main(["submit", "job.toml", "--print"]) == 0
    assert f"\nmpirun {place / 'bin' / 'python'} -m hpcopt run job.toml &\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["none.toml"], "the job file none.toml cannot be read"),
        (["job.toml", "--set", "run.epoch=3"], "run.epoch is not a key of [run]"),
        (["job.toml", "--set", "solver.radios=3"], "solver.radios is not an option of the method 'trust_region'"),
        (["job.toml", "--set", "model.width=3"], "width"),
        (["job.toml", *PLAIN, "--set", "parallel.layout=variables", "--set", "parallel.grid=[3, 1]"], "does not fit 4"),
        (["job.toml", "--time", "tomorrow"], "slurm.time = 'tomorrow' is not a time limit"),
        (["job.toml", "--nodes", "0"], "slurm.nodes = 0 is not allowed"),
        (["--mem", "8G", "job.toml"], "The job file comes first"),
        (["job.toml", "--fresh"], "--fresh is not for a job that starts more than once"),
        (["job.toml", "--array", "run.seed=1,x"], "run.seed = 'x' is not allowed"),
        (["job.toml", "--array", "run.seed="], "has an empty value"),
    ],
)
def test_what_cannot_work_is_refused_before_it_waits_in_a_queue(
    words: list[str], says: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(place / "bin", "sbatch", f"touch {place}/submitted")
    assert main(["submit", *words]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (place / "submitted").exists()


def test_a_job_is_submitted_from_a_script_that_stays(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(place / "bin", "sbatch", f'cp "$2" {place}/got; echo 12')
    assert main(["submit", "job.toml", *PLAIN, "--print"]) == 0
    printed = capsys.readouterr().out
    assert main(["submit", "job.toml", *PLAIN]) == 0
    assert (place / "got").read_text() == (place / "runs" / "job.sbatch").read_text() == printed
    assert capsys.readouterr().out == (
        "job 12: submitted, from runs/job.sbatch\njob 12: mpirun starts the ranks: it was asked for (slurm.launcher)\n"
    )


def test_without_sbatch_the_script_is_there_all_the_same(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(place / "bin"))
    assert main(["submit", "job.toml"]) == 2
    assert "sbatch cannot be started" in capsys.readouterr().err
    assert (place / "runs" / "job.sbatch").exists()


def test_a_script_that_cannot_be_written_is_no_bug(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "runs").write_text("a file")
    assert main(["submit", "job.toml"]) == 2
    assert "runs/job.sbatch cannot be written" in " ".join(capsys.readouterr().err.split())


def test_wait_returns_the_jobs_own_status(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hpcopt.cluster.queue.FIRST_WAIT", 0.01)
    install(place / "bin", "sbatch", "echo 12")
    install(place / "bin", "scontrol", 'echo "JobId=12 JobState=FAILED Reason=None Restarts=1 ExitCode=75:0"')
    assert main(["submit", "job.toml", "--wait"]) == 75
    assert capsys.readouterr().out.splitlines()[-1] == "job 12: FAILED, requeued once"


def test_mpi_is_not_loaded() -> None:
    assert "mpi4py" not in modules_after_command("submit", "jobs/quickstart.toml", "--time", "5", "--print")
