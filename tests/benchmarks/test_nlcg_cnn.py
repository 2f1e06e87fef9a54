"""The benchmark of NLCG by size of the batch: its problems, its verdict, and a short form of all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks._runs import JOBS
from benchmarks.nlcg import _comparison
from benchmarks.nlcg._comparison import Problem, Run
from benchmarks.nlcg.cnn import JOB, arguments, main, problems, verdict
from hpcopt.comm.communicator import Communicator
from hpcopt.config import parse_job
from tests.support.benchmarks import in_process, write_images


def given(*words: str) -> list[Problem]:
    return problems(arguments(["--root", "data", *words]))


def test_nlcg_shall_be_ahead_with_large_batches_and_close_with_small_ones() -> None:
    found = given()
    assert [(each.batch, each.iterations, each.aim) for each in found] == [
        ("1024", 49, -0.003),
        ("4096", 13, -0.003),
        ("16384", 4, 0.0),
        ('"full"', 1, 0.0),
    ]
    assert {(each.budget, each.later) for each in found} == {(20.0, 0.0)}


def test_batches_of_as_many_images_as_there_are_are_full() -> None:
    assert [(each.batch, each.aim) for each in given("--limit", "2000", "--batches", "500", "4096", "full")] == [
        ("500", -0.003),
        ('"full"', 0.0),
    ]


@pytest.mark.parametrize(
    ("lead", "aim", "expected"), [(-0.2, -0.003, "met"), (-0.4, -0.003, "NOT met"), (0.1, 0, "met")]
)
def test_the_lead_is_over_the_best_of_all_other_methods(lead: float, aim: float, expected: str) -> None:
    def run(name: str, accuracy: float) -> Run:
        return Run(name, [{"gradient_equivalents": 1.0, "seconds": 1.0, "test_accuracy": accuracy, "train_loss": 1.0}])

    runs = {"nlcg": [run("nlcg", 0.6 + lead / 100)], "adam": [run("adam, 1", 0.6), run("adam, 2", 0.5)]}
    runs["lbfgs"] = [run("lbfgs", 0.4)]
    line = verdict(Problem(JOB, "1024", 49, 20.0, aim), [runs])
    assert line.startswith(f"- {lead:+.2f} points ahead of adam, 1 (aim: ")
    assert line.endswith(f": {expected}")


def test_the_job_has_no_option_of_the_method() -> None:
    job = parse_job((JOBS / JOB).read_text())
    assert (job.solver.name, job.solver.options, job.model.name, job.model.options) == ("nlcg", {}, "cnn", {})


def test_the_whole_benchmark_in_short(
    comm: Communicator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process instead of under mpirun; given twice, the second time all runs are there."""
    made: list[str] = []
    root = write_images(tmp_path, "cifar10")
    monkeypatch.setattr(_comparison, "trained", in_process(comm, made))
    monkeypatch.setattr(_comparison, "RATES", {"adam": (1e-3,), "sgd": (0.1,)})
    words = ["--root", str(root), "--runs", str(tmp_path / "runs"), "--epochs", "2", "--limit", "24", "--seeds", "0"]
    words += ["--batches", "12", "--set", "model.channels=[2]", "--methods", "adam", "lbfgs"]
    for _ in range(2):
        main([*words, "--output", str(tmp_path / "report.md")])
    methods = ["nlcg", "adam-0.001", "lbfgs"]
    assert made == [f"cifar10-cnn-nlcg-{method}" for method in methods]
    shown = capsys.readouterr().out
    assert "The first 24 images." in shown
    written = (tmp_path / "report.md").read_text()
    assert "--root DIR --seeds 0 --methods adam lbfgs --ranks 2 --patience 1 --set 'model.channels=[2]'" in written
    assert " --batches 12 --epochs 2 --limit 24\n" in written
    assert all(shown.count(f"\n| {method.replace('-', ', ')} ") == 2 for method in methods)
