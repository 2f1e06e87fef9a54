"""Jobs on a cluster: started by srun and by mpirun, in arrays, and interrupted in all the ways a cluster has."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from hpcopt.checkpoint.folder import FOLDER
from tests.fault.conftest import Finished
from tests.slurm.conftest import PROGRAM, SUBMIT, Cluster, Job
from tests.support.held import JOB, MODELS, assert_equal_runs, hold, last_step, write_job

NOTED = """
def noted(input_shape, outputs):
    '''The slow model, which notes the node it is made on.'''
    Path(f"made-on-{os.environ['SLURMD_NODENAME']}").touch()
    return slow(input_shape, outputs)
"""

SAVED = f"out/{FOLDER}/latest"


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with the job, whose name is given."""

    def folder(name: str) -> Path:
        return write_job(tmp_path_factory.mktemp(name), JOB.replace("slow", "noted"), MODELS + NOTED)

    return folder


@pytest.fixture(scope="module", autouse=True)
def limited(cluster: Cluster, make: Callable[[str], Path]) -> Job:
    """A job that comes to its time limit twice; Slurm looks at limits each 30 seconds only, so it starts first."""
    path = make("limited")
    hold(path, SAVED)
    hold(path, "out/status.json", start=1)
    return cluster.submit(path)


@pytest.fixture(scope="module", autouse=True)
def lost(cluster: Cluster, make: Callable[[str], Path], limited: Job) -> Mapping[str, Job]:
    """Jobs that have lost a node after their first checkpoint; it takes Slurm half a minute to notice."""
    jobs = {}
    for mpi in ("own", "other") if os.environ.get("HPCOPT_TEST_OTHER_MPI") else ("own",):
        path = make(mpi)
        hold(path, SAVED)
        jobs[mpi] = cluster.submit(path, "--nodelist", "n2,n3", mpi=mpi)
    for job in (limited, *jobs.values()):
        job.wait_for((job.path / "waits0").exists)
    cluster.ask(PROGRAM, "fail", "n3")
    limited.near_its_limit()
    return jobs


@pytest.fixture(scope="module")
def back(cluster: Cluster, lost: Mapping[str, Job]) -> Mapping[str, Job]:
    """These jobs once Slurm has noticed, and the node is there again."""
    lost["own"].wait_for(lambda: "n3 down" in cluster.ask("sinfo", "-h", "-N", "-o", "%N %T"))
    cluster.ask(PROGRAM, "start", "n3")
    return lost


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, make: Callable[[str], Path]) -> tuple[Path, Finished]:
    """The folder of the job when nobody disturbs it, and what submitting it and waiting for its end came to."""
    path = make("undisturbed")
    return path, cluster.run(*SUBMIT, "--run-dir", "out", "--wait", cwd=path)


def assert_finished_like(job: Job, path: Path) -> None:
    """The job came to its end, on both nodes and with the same bits as the one in ``path``."""
    assert job.finish() == ["COMPLETED"], job.output()
    assert len(list(job.path.glob("made-on-*"))) == 2
    assert_equal_runs(job.path / "out", path / "out")


def test_submit_can_wait_for_the_end_and_has_the_status_of_the_job(undisturbed: tuple[Path, Finished]) -> None:
    path, done = undisturbed
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mpirun starts the ranks" in done.stdout
    status = json.loads((path / "out/status.json").read_text())
    assert (status["status"], status["ranks"]) == ("finished", 2)
    assert sorted(file.name for file in path.glob("made-on-*")) == ["made-on-n1", "made-on-n2"]


@pytest.mark.parametrize(("options", "starts"), [((), "srun"), (("--launcher", "mpirun"), "mpirun")])
def test_the_other_mpi_runs_under_srun_and_under_its_mpirun(
    cluster: Cluster, make: Callable[[str], Path], undisturbed: tuple[Path, Finished], options: tuple, starts: str
) -> None:
    job = cluster.submit(make(starts), *options, mpi="other")
    assert f"{starts} starts the ranks" in job.said
    assert_finished_like(job, undisturbed[0])


def test_ranks_that_srun_leaves_alone_are_refused(cluster: Cluster, make: Callable[[str], Path]) -> None:
    path = make("alone")
    job = cluster.submit(path, "--launcher", "srun --mpi=none", mpi="other")
    assert job.finish() == ["FAILED"]
    assert job.shown("ExitCode") == ["2:0"]
    assert "2 processes were started (SLURM_STEP_NUM_TASKS=2), but each is alone" in job.output()
    assert "Try srun --mpi=pmi2 or" in job.output()
    assert not (path / "out").exists()


def test_a_job_is_saved_before_its_time_limit_and_submits_itself_again(limited: Job) -> None:
    limited.wait_for(lambda: limited.shown("JobState") == ["PENDING"])
    assert limited.shown("Restarts") == ["1"]
    status = json.loads((limited.path / "out/status.json").read_text())
    assert (status["status"], status["exit_status"]) == ("saved", 75)
    assert last_step(limited.path) == status["summary"]["iterations"]
    limited.go_on()
    limited.wait_for((limited.path / "waits1").exists)
    limited.near_its_limit()


def test_an_array_has_a_run_for_each_value(cluster: Cluster, make: Callable[[str], Path]) -> None:
    path = make("array")
    job = cluster.submit(path, "--nodes", "1", "--array", "run.seed=0,1,2")
    assert job.finish() == ["COMPLETED"] * 3, job.output()
    runs = [json.loads((path / f"out-seed={seed}/status.json").read_text()) for seed in range(3)]
    assert [run["status"] for run in runs] == ["finished"] * 3
    assert len({run["summary"]["final"]["train_loss"] for run in runs}) == 3


def test_a_cancelled_job_leaves_no_process_and_can_be_submitted_again(
    cluster: Cluster, make: Callable[[str], Path], undisturbed: tuple[Path, Finished]
) -> None:
    path = make("cancelled")
    hold(path, SAVED)
    job = cluster.submit(path)
    job.wait_for((path / "waits0").exists)
    assert job.processes()
    cluster.ask("scancel", job.number)
    assert job.finish() == ["CANCELLED"]
    job.wait_for(lambda: not job.processes())
    step = last_step(path)
    cluster.ask("hpcopt", "verify", str(path / "out"))
    (path / "hold0").unlink()
    again = cluster.submit(path)
    assert_finished_like(again, undisturbed[0])
    assert f"going on after iteration {step} " in again.output()


def test_a_job_that_is_stopped_is_saved_and_does_not_start_again(cluster: Cluster, make: Callable[[str], Path]) -> None:
    path = make("stopped")
    hold(path, SAVED)
    job = cluster.submit(path)
    job.wait_for((path / "waits0").exists)
    cluster.ask("hpcopt", "stop", str(path / "out"))
    (path / "asked0").touch()
    assert job.finish() == ["FAILED"]
    assert (job.shown("ExitCode"), job.shown("Restarts")) == (["5:0"], ["0"])
    status = json.loads((path / "out/status.json").read_text())
    assert (status["status"], status["exit_status"]) == ("saved", 5)
    assert last_step(path) == status["summary"]["iterations"]


def test_the_doctor_knows_the_job_it_is_in(cluster: Cluster, tmp_path: Path) -> None:
    doctor = f"mpirun {sys.executable} -m hpcopt doctor --json"
    options = "--wait --nodes 2 --ntasks-per-node 1 --time 30 --output said"
    done = cluster.run("sbatch", *options.split(), f"--wrap={doctor}", cwd=tmp_path)
    text = (tmp_path / "said").read_text()
    assert done.returncode == 0, text
    said = json.loads(text[text.index("{") :])
    assert (said["job"]["nodes"], said["job"]["tasks"], len(said["ranks"])) == (2, 2, 2)
    assert 0 < said["job"]["seconds_left"] <= 1800
    topics = {finding["topic"]: finding["level"] for finding in said["findings"]}
    assert (topics["job"], topics["time"]) == ("green", "green")


@pytest.mark.parametrize("mpi", ["own", "other"])
def test_a_job_that_loses_a_node_starts_again_and_comes_to_the_same_end(
    back: Mapping[str, Job], undisturbed: tuple[Path, Finished], mpi: str
) -> None:
    job = back.get(mpi) or pytest.skip("there is no second MPI")
    assert_finished_like(job, undisturbed[0])
    assert job.shown("Restarts") == ["1"]
    assert "going on after iteration" in job.output()


def test_a_job_that_started_again_twice_comes_to_the_same_end(limited: Job, undisturbed: tuple[Path, Finished]) -> None:
    limited.wait_for(lambda: limited.shown("JobState") == ["PENDING"])
    limited.go_on()
    assert_finished_like(limited, undisturbed[0])
    assert limited.shown("Restarts") == ["2"]
    assert limited.output().count("The run was asked to stop; it is saved") == 2
    assert limited.output().count("going on after iteration") == 2
