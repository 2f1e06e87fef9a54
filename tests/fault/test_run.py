"""Whole runs from the outside: what goes in, what comes out, and what every kind of bad input ends in."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

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
import torch

def good(input_shape, outputs):
    return torch.nn.Linear(input_shape[0], outputs)

def narrow(input_shape, outputs):
    return torch.nn.Linear(input_shape[0] + 1, outputs)

def few_outputs(input_shape, outputs):
    return torch.nn.Linear(input_shape[0], outputs - 1)

class FailsOnOneRank(torch.nn.Linear):
    def forward(self, x):
        from mpi4py import MPI
        if self.training and MPI.COMM_WORLD.rank == 1:
            raise ArithmeticError("planted failure")
        return super().forward(x)

def fails_on_one_rank(input_shape, outputs):
    return FailsOnOneRank(input_shape[0], outputs)

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
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "mymodels.py").write_text(MODELS)
    return tmp_path


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_trains_and_leaves_a_record(workplace: Path, launch: Callable, ranks: int) -> None:
    done = launch(ranks, ["hpcopt", "run", "job.toml", "--run-dir", "out"], timeout=60)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    assert "run directory: out" in done.stdout
    assert "\x1b" not in done.stdout
    status = json.loads((workplace / "out/status.json").read_text())
    assert (status["status"], status["exit_status"], status["ranks"]) == ("finished", 0, ranks)
    assert {"job.toml", "environment.json", "metrics.h5", "status.json", "log"} == set(os.listdir(workplace / "out"))
    assert f"[rank 0/{ranks}]" in (workplace / "out/log/rank0000.log").read_text()


def test_the_command_alone_runs_as_one_rank(workplace: Path, launch: Callable) -> None:
    done = launch(0, ["hpcopt", "run", "job.toml", "--quiet"], timeout=60)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (workplace / "runs/job/metrics.h5").exists()


def test_the_saved_job_repeats_the_run(workplace: Path, launch: Callable) -> None:
    launch(2, ["hpcopt", "run", "job.toml", "--run-dir", "a", "--set", "run.seed=5"], timeout=60)
    launch(2, ["hpcopt", "run", "a/job.toml", "--run-dir", "b"], timeout=60)
    first, second = (json.loads((workplace / d / "status.json").read_text())["summary"]["final"] for d in "ab")
    assert first == second


BAD = {
    "an unknown key": (["--set", "run.epoch=3"], "run.epoch .*epochs"),
    "a wrong value": (["--set", "solver.learning_rate=-1"], "learning_rate"),
    "an unknown method": (["--set", "solver.name=sdg"], "'sdg'.*sgd"),
    "an unknown key of the method": (["--set", "solver.momentun=0.5"], "momentun.*momentum"),
    "a missing file": (["--set", "data.source=nothing.csv"], "nothing.csv"),
    "a damaged gz": (["--set", "data.source=damaged.csv.gz"], "damaged.csv.gz"),
    "a label out of range": (["--set", "data.test=strange.csv"], "strange.csv"),
    "labels that do not fit the classes": (["--set", "data.classes=2", "--set", "data.source=strange.csv"], "7"),
    "a batch larger than the data": (["--set", "data.batch=500"], "500"),
    "more ranks than samples": (["--set", "data.limit=1", "--set", "data.batch=full"], "1 "),
    "a model that does not take the samples": (["--set", "model.name=mymodels:narrow"], r"sample of shape \(3,\)"),
    "a model whose output does not fit the loss": (["--set", "model.name=mymodels:few_outputs"], "output"),
    "a model that is not there": (["--set", "model.name=mymodels:god"], "good"),
    "a stop criterion without a test set": (
        ["--set", "data.test=false", "--set", "run.stop.test_accuracy=0.9"],
        "can never be reached",
    ),
    "a stop criterion above one": (["--set", "run.stop.test_accuracy=95"], "95"),
    "an unwritable run directory": (["--run-dir", "file/out"], "file"),
    "a run directory that is a file": (["--run-dir", "file"], "is a file"),
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
    options, says = BAD[case]
    options = options if "--run-dir" in options else ["--run-dir", "out", *options]
    done = launch(2, ["hpcopt", "run", "job.toml", *options], timeout=60)
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


def test_a_second_job_in_a_directory_is_refused_and_fresh_keeps_the_old_run(workplace: Path, launch: Callable) -> None:
    argv = ["hpcopt", "run", "job.toml", "--run-dir", "out"]
    assert launch(1, argv, timeout=60).returncode == 0
    refused = launch(1, argv, timeout=60)
    assert (refused.returncode, refused.stderr.count("already holds a run")) == (2, 1)
    assert launch(1, [*argv, "--fresh"], timeout=60).returncode == 0
    kept = [p for p in workplace.iterdir() if p.name.startswith("out.before-")]
    assert len(kept) == 1
    assert (kept[0] / "metrics.h5").exists()


def test_an_exception_on_one_rank_ends_the_job_with_its_trace(workplace: Path, launch: Callable) -> None:
    argv = ["hpcopt", "run", "job.toml", "--run-dir", "out", "--set", "model.name=mymodels:fails_on_one_rank"]
    done = launch(3, argv, timeout=60)
    assert done.returncode == 1
    assert "planted failure" in done.stderr
    assert "[rank 1/3" in done.stderr
    assert done.seconds < 25


def test_nan_on_one_rank_is_rejected_on_all_and_the_run_ends_as_diverged(workplace: Path, launch: Callable) -> None:
    options = ["--set", "model.name=mymodels:poison", "--set", "run.give_up_after=4"]
    done = launch(2, ["hpcopt", "run", "job.toml", "--run-dir", "out", *options], timeout=60)
    assert done.returncode == 3, done.stderr
    status = json.loads((workplace / "out/status.json").read_text())
    assert (status["status"], status["summary"]["steps"]) == ("diverged", {"accepted": 0, "rejected": 4})
    assert "not finite" in status["stop_reason"]
    assert status["summary"]["final"]["test_accuracy"] == status["summary"]["initial"]["test_accuracy"]
