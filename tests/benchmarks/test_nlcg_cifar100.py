"""The published table of NLCG: every run has the same problem and recipe, and a short form of all of it runs here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _runs
from benchmarks._runs import percent, trained
from benchmarks.nlcg import cifar100
from benchmarks.nlcg.cifar100 import JOB, main, methods, rows
from hpcopt.comm.communicator import Communicator
from hpcopt.config import parse_job
from hpcopt.solvers.conjugate.options import PAPER
from hpcopt.solvers.nlcg import NLCG
from hpcopt.solvers.registry import make_solver
from hpcopt.solvers.sgd import SGD
from tests.support.benchmarks import in_process, write_images


def solver(settings: list[str]) -> Any:
    job = parse_job(JOB.read_text(), settings)
    return make_solver(job.solver.name, job.solver.options)


def test_the_job_is_the_published_recipe() -> None:
    job, method = parse_job(JOB.read_text()), solver([])
    assert (job.run.epochs, job.data.batch, job.model.name, job.loss.weight_decay) == (200, 8192, "resnet32", 2e-4)
    assert not job.loss.decay_norms
    assert (job.data.augment, job.data.standardize) == ("crop_flip", "image")
    assert {key: getattr(method, key) for key in PAPER} == {**PAPER, "learning_rate": 6.4}


def test_at_full_length_each_method_is_what_its_name_says() -> None:
    found = {name: solver(settings) for name, settings in methods(8192, 200.0, cifar100.METHODS).items()}
    assert found.pop("paper") == solver([])
    assert found.pop("default") == NLCG()
    assert [each.learning_rate for each in found.values()] == [0.1, 0.4, 1.6, 3.2, 6.4]
    assert all(isinstance(each, SGD) and each.momentum == 0.9 for each in found.values())
    assert {(each.schedule, each.decay_epochs, each.warmup, each.warmup_epochs) for each in found.values()} == {
        ("step", (102.0, 153.0), "sqrt", 25.0)
    }
    larger = methods(16384, 200.0, ["paper", "momentum"])
    assert [solver(settings).learning_rate for settings in larger.values()] == [12.8, 0.2, 0.8, 3.2, 6.4, 12.8]


def test_a_shorter_run_has_a_shorter_schedule() -> None:
    (settings,) = methods(128, 2.0, ["paper"]).values()
    method = solver(settings)
    assert (method.learning_rate, method.decay_epochs, method.warmup_epochs) == (0.1, (1.02, 1.53), 0.25)


def test_a_run_that_diverged_says_so() -> None:
    figures = {"train_loss": None, "test_accuracy": None, "epoch": None}
    told = {"status": "diverged", "final": figures, "best": figures, "work": {"gradient_equivalents": 3.0}}
    (line,) = rows(8192, {"momentum, 6.4": {**told, "seconds": 9.0}})
    assert line == ["momentum, 6.4", "diverged", "- (0)", percent(0.66), "inf", "3", "9"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_was_interrupted_goes_on_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        commands.append(command)
        return type("Process", (), {"returncode": 75})

    monkeypatch.setattr(_runs.subprocess, "run", run)
    with pytest.raises(SystemExit, match="ended with status 75"):
        trained(JOB, 1, tmp_path, "name", "data", [], resume=resume)
    assert ("--fresh" in commands[0]) is not resume


def test_the_whole_benchmark_in_short(
    comm: Communicator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process instead of under mpirun; given twice, the second time all runs are there."""
    made: list[str] = []
    root = write_images(tmp_path, "cifar100")
    monkeypatch.setattr(cifar100, "trained", in_process(comm, made))
    monkeypatch.setattr(cifar100, "PARTS", (1 / 4, 1.0))
    words = ["--root", str(root), "--runs", str(tmp_path / "runs"), "--epochs", "1", "--limit", "24"]
    for _ in range(2):
        main([*words, "--batches", "12", "--set", "model.width=1"])
    names = ["12-paper", "12-default", *(f"12-momentum-{part * 0.1 * 12 / 128:g}" for part in cifar100.PARTS)]
    assert made == names
    shown = capsys.readouterr().out
    assert "## Batches of at most 12, evened out: 12" in shown
    assert len(re.findall(r"^\| (?:paper|default|momentum, [\d.e-]+) +\|", shown, re.MULTILINE)) == 8
