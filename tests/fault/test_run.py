"""Whole runs from the outside: what goes in, what comes out, and what every kind of bad input ends in."""

from __future__ import annotations

import gzip
import json
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hpcopt.analysis.history import open_run
from tests.fault.conftest import run_words
from tests.support.held import write_job

JOB = """
[run]
epochs = 3
[data]
source = "samples.csv"
batch = 30
test = 0.25
[solver]
name = "sgd"
learning_rate = 0.1
"""

MODELS = """
import os, signal, time
from pathlib import Path

import torch

def good(input_shape, outputs):
    return torch.nn.Linear(input_shape[0], outputs)

def narrow(input_shape, outputs):
    return torch.nn.Linear(input_shape[0] + 1, outputs)

def few_outputs(input_shape, outputs):
    return torch.nn.Linear(input_shape[0], outputs - 1)

class Planted(torch.nn.Linear):
    passes = 0

    def forward(self, x):
        from mpi4py import MPI
        self.passes += self.training
        if self.passes == 5 and MPI.COMM_WORLD.rank == self.rank:
            Path("failed").write_text(str(time.time()))
            if self.how == "interrupt":
                os.kill(os.getpid(), signal.SIGINT)
            raise ArithmeticError("planted failure")
        return super().forward(x)

def planted(input_shape, outputs, rank=0, how="bug"):
    model = Planted(input_shape[0], outputs)
    model.rank, model.how = rank, how
    return model

class Waits(torch.nn.Linear):
    def forward(self, x):
        deadline = time.monotonic() + 50
        # Not before: the model is also tried once when it is built.
        started = self.training and Path("out/status.json").exists()
        while started and not Path("go").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        return super().forward(x)

def waits(input_shape, outputs):
    return Waits(input_shape[0], outputs)

class Poison(torch.nn.Linear):
    def forward(self, x):
        from mpi4py import MPI
        y = super().forward(x)
        return y * float("nan") if self.training and MPI.COMM_WORLD.rank == 1 else y

def poison(input_shape, outputs):
    return Poison(input_shape[0], outputs)
"""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a job, a small set of two clouds of points, and models of the user's own."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    labels = np.arange(101) % 2
    table = np.column_stack([labels, random.normal(size=(101, 3)) + 2 * labels[:, None]])
    np.savetxt(tmp_path / "samples.csv", table, delimiter=",", header="label,a,b,c", fmt="%.6g")
    return write_job(tmp_path, JOB, MODELS)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_trains_and_leaves_a_record(workplace: Path, launch: Callable, ranks: int) -> None:
    done = launch(ranks, run_words(), timeout=60)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    assert "run directory: out" in done.stdout
    assert "\x1b" not in done.stdout
    status = json.loads((workplace / "out/status.json").read_text())
    assert (status["status"], status["exit_status"], status["ranks"]) == ("finished", 0, ranks)
    left = {"job.toml", "environment.json", "metrics.h5", "status.json", "log", "checkpoints"}
    assert left == set(os.listdir(workplace / "out"))
    assert f"[rank 0/{ranks}]" in (workplace / "out/log/rank0000.log").read_text()


def test_the_command_alone_runs_as_one_rank(workplace: Path, launch: Callable) -> None:
    done = launch(0, ["hpcopt", "run", "job.toml", "--quiet"], timeout=60)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (workplace / "runs/job/metrics.h5").exists()


def test_the_saved_job_repeats_the_run(workplace: Path, launch: Callable) -> None:
    launch(2, run_words("run.seed=5", directory="a"), timeout=60)
    launch(2, ["hpcopt", "run", "a/job.toml", "--run-dir", "b"], timeout=60)
    first, second = (json.loads((workplace / d / "status.json").read_text())["summary"]["final"] for d in "ab")
    assert first == second


BAD = {
    "an unknown key": (["run.epoch=3"], r"run\.epoch is not a key of \[run\]; did you mean 'epochs'\?"),
    "a wrong value": (["solver.learning_rate=-1"], "learning_rate = -1 must be a number above 0"),
    "an unknown method": (["solver.name=sdg"], "'sdg' is not a method of hpcopt; did you mean 'sgd'"),
    "an unknown key of the method": (
        ["solver.momentun=0.5"],
        "solver.momentun is not an option of the method 'sgd'; did you mean 'momentum'",
    ),
    "a missing file": (["data.source=nothing.csv"], "'nothing.csv', which does not exist"),
    "a damaged gz": (["data.source=damaged.csv.gz"], "data file 'damaged.csv.gz' is damaged"),
    "a label out of range": (
        ["data.test=strange.csv"],
        "row 1 of 'strange.csv' has the label 7, but the training set has only the labels 0, 1",
    ),
    "labels that do not fit the classes": (
        ["data.classes=2", "data.test=strange.csv"],
        "row 1 of 'strange.csv' has the label 7, but the 2 classes have the labels 0 to 1",
    ),
    "a batch larger than the data": (
        ["data.batch=500"],
        "data.batch is 500, but the training set has only 76 samples",
    ),
    "more ranks than samples": (
        ["data.limit=1", "data.batch=full"],
        r"has 1 samples \(data.limit = 1\), which are not enough for 2 ranks",
    ),
    "a model that does not take the samples": (
        ["model.name=mymodels:narrow"],
        r"'mymodels:narrow' does not take a batch of two samples of shape \(3,\)",
    ),
    "a model whose output does not fit the loss": (
        ["model.name=mymodels:few_outputs"],
        r"'mymodels:few_outputs' maps two samples to \(2, 1\), but this data needs \(2, 2\)",
    ),
    "a model that is not there": (["model.name=mymodels:god"], "no function 'god'; did you mean 'good'"),
    "a stop criterion without a test set": (
        ["data.test=false", "run.stop.test_accuracy=0.9"],
        "can never be reached, since there is no test set",
    ),
    "a stop criterion above one": (
        ["run.stop.test_accuracy=95"],
        "run.stop.test_accuracy = 95.0 is not allowed; it must be a fraction above 0 and at most 1",
    ),
    "an unwritable run directory": ([], r"run directory \S+/file/out cannot be written", "file/out"),
    "a run directory that is a file": ([], r"run directory \S+/file is a file", "file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_paragraph_with_status_2_and_leaves_nothing(
    workplace: Path, launch: Callable, case: str
) -> None:
    (workplace / "file").write_text("not a directory")
    (workplace / "strange.csv").write_text("# label,a,b,c\n0,1,2,3\n7,1,2,3\n1,0,0,0\n0,1,1,1\n1,2,2,2\n")
    packed = gzip.compress(b"0,1,2,3\n1,2,3,4\n" * 50)
    (workplace / "damaged.csv.gz").write_bytes(packed[: len(packed) // 2])
    before = sorted(os.listdir(workplace))
    settings, says, *elsewhere = BAD[case]
    done = launch(2, run_words(*settings, directory=elsewhere[0] if elsewhere else "out"), timeout=60)
    assert done.returncode == 2, done.stderr
    assert re.search(says, done.stderr.replace("\n", " ")), done.stderr
    assert done.stderr.count("hpcopt: error:") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(set(os.listdir(workplace)) - {"__pycache__"}) == before


def test_a_job_file_that_is_not_there_is_refused(workplace: Path, launch: Callable) -> None:
    done = launch(2, ["hpcopt", "run", "nothing.toml"], timeout=60)
    assert done.returncode == 2
    assert "nothing.toml" in done.stderr
    assert not (workplace / "runs").exists()


def test_a_run_that_was_not_saved_is_not_overwritten_and_fresh_keeps_it(workplace: Path, launch: Callable) -> None:
    argv = run_words("checkpoint.save=false")
    assert launch(1, argv, timeout=60).returncode == 0
    refused = launch(1, argv, timeout=60)
    assert (refused.returncode, refused.stderr.count("already holds a run")) == (2, 1)
    assert launch(1, [*argv, "--fresh"], timeout=60).returncode == 0
    kept = [p for p in workplace.iterdir() if p.name.startswith("out.before-")]
    assert len(kept) == 1
    assert (kept[0] / "metrics.h5").exists()


def test_of_two_jobs_in_a_directory_at_once_the_second_is_refused_and_the_first_finishes(
    workplace: Path, launch: Callable
) -> None:
    """The first one waits within its first step until the others have been refused."""
    argv = run_words()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(launch, 2, [*argv, "--set", "model.name=mymodels:waits"], timeout=100)
        try:
            wait_for(workplace / "out/status.json")
            others = [launch(1, [*argv, *more], timeout=30) for more in ([], ["--fresh"])]
        finally:
            (workplace / "go").touch()
        done = first.result()
    for other in others:
        assert other.returncode == 2
        assert re.search(r"The run directory \S+/out is in use by process \d+", other.stderr), other.stderr
    assert done.returncode == 0, done.stderr
    assert open_run(workplace / "out").status == "finished"


def wait_for(path: Path, seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("how", "rank", "status"), [("bug", 0, 1), ("bug", 1, 1), ("interrupt", 0, 130), ("interrupt", 1, 130)]
)
def test_a_failure_of_one_rank_amid_training_ends_the_job_within_ten_seconds(
    workplace: Path, launch: Callable, how: str, rank: int, status: int
) -> None:
    """In the fifth training pass, while the other rank waits in a reduction."""
    model = ["model.name=mymodels:planted", f"model.rank={rank}", f"model.how={how}"]
    done = launch(2, run_words(*model), timeout=60)
    assert done.returncode == status, done.stderr
    assert done.ended - float((workplace / "failed").read_text()) < 10
    assert open_run(workplace / "out").status == "failed"
    if how == "bug":
        trace = [line for line in done.stderr.splitlines() if line.startswith(f"[rank {rank}/2 ")]
        assert trace[-1].endswith("] ArithmeticError: planted failure")
        assert any(line.endswith(", in step") for line in trace), "not in the step of a solver"
    else:
        assert "Traceback" not in done.stderr


def test_a_run_stops_when_its_seconds_are_spent(workplace: Path, launch: Callable) -> None:
    """On all ranks in the same step, although only one clock decides."""
    settings = ["run.stop.seconds=1.5", "run.epochs=10_000_000", "run.evaluate_every=1_000_000"]
    done = launch(2, run_words(*settings), timeout=40)
    assert done.returncode == 0, done.stderr
    run = open_run(workplace / "out")
    assert (run.status, run.facts["stop_reason"]) == ("finished", "The time given in run.stop.seconds is spent.")
    assert 1.5 <= run.evaluations.wall_seconds[-1] < 10


def test_a_name_with_brackets_is_a_name(workplace: Path, launch: Callable) -> None:
    done = launch(2, run_words("run.name=a[/b]", directory="out[/b]"), timeout=60)
    assert done.returncode == 0, done.stderr
    assert "hpcopt a[/b]: sgd on " in done.stdout
    assert "\na[/b]" in done.stdout
    assert "run directory: out[/b]" in done.stdout


def test_nan_on_one_rank_is_rejected_on_all_and_the_run_ends_as_diverged(workplace: Path, launch: Callable) -> None:
    done = launch(2, run_words("model.name=mymodels:poison", "run.give_up_after=4"), timeout=60)
    assert done.returncode == 3, done.stderr
    status = json.loads((workplace / "out/status.json").read_text())
    assert (status["status"], status["summary"]["steps"]) == ("diverged", {"accepted": 0, "rejected": 4})
    assert "not finite" in status["stop_reason"]
    assert status["summary"]["final"]["test_accuracy"] == status["summary"]["initial"]["test_accuracy"]
