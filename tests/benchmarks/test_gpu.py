"""The benchmark on a GPU, dry: its logic on the processor, with the CUDA kernels as the host's compiler makes them."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks.gpu import kernels, run, transport
from benchmarks.gpu.kernels import Row, Size
from hpcopt.comm.communicator import Communicator
from hpcopt.kernels.cupy_vectors import CupyVectors
from hpcopt.kernels.torch_kernels import TorchKernels

SMALL = Size(33, 3, 5, 6, 70, 64, 8)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is timed: a call is made once, and lasts a second."""

    def called(call: object, device: torch.device) -> float:
        """One second."""
        call()  # type: ignore[operator]
        return 1.0

    monkeypatch.setattr(kernels, "seconds", called)


def test_every_kernel_has_a_row_with_a_small_error() -> None:
    lines = kernels.report(torch.device("cpu"), torch.float64, SMALL)
    rows = [line.split("|") for line in lines if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) == 9
    assert all(float(row[7]) < 1e-14 for row in rows)
    assert sum("target" in line for line in lines) == 4


def test_a_wrong_kernel_shows_in_its_error() -> None:
    class Wrong(TorchKernels):
        def units(self, factors: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
            return 1.01 * super().units(factors, outputs)

    rows = kernels.factor_rows(Wrong(), torch.device("cpu"), torch.float64, SMALL)
    errors = {row.kernel: row.error for row in rows}
    assert errors["r = M' y"] == pytest.approx(0.01)
    assert errors["q = M t"] < 1e-14


def test_targets_are_met_or_not_by_the_faster_implementation() -> None:
    names = ["q = M t", "r = M' y", "block, r = M' B M t"]
    rows = [Row(name, made, time, 80.0, 0.0, 0.0) for name in names for made, time in (("torch", 2.0), ("CuPy", 1.0))]
    rows.append(Row("recursion of M", "torch", 1.0, 1.0, 69.0, 0.0))
    lines = kernels.verdict(rows, bandwidth=100.0, rate=100.0)
    assert [line.endswith(": met") for line in lines] == [True, True, True, False]
    assert "(CuPy): 0.80" in lines[0]


def test_iterations_are_measured_recorded_and_not() -> None:
    launched = []

    class Nothing:
        shared_limit = 0

        def __call__(self, name: str, *given: object, **options: object) -> None:
            launched.append(name)

    kinds = [CupyVectors(Nothing()), CupyVectors(Nothing())]
    lines = kernels.iteration_lines(torch.device("cpu"), kinds, sides=(3,), most=5)
    assert launched == ["cg_products", "cg_decide", "cg_move"] * 10
    assert [cell.strip() for cell in lines[-1].split("|")[1:-1]] == ["3", "200000.0", "200000.0", "1.00"]
    assert kernels.iteration_lines(torch.device("cpu")) == ["Not measured: the processor has no CUDA graphs."]


def test_without_a_device_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py"])
    assert run.main() == 0
    assert capsys.readouterr().out.startswith("no device")


def test_a_part_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path, capsys) -> None:
    def fails() -> list[str]:
        """One part."""
        raise RuntimeError("out of memory")

    monkeypatch.setattr(run, "sections", lambda *_: iter([("First", fails), ("Second", lambda: ["measured"])]))
    monkeypatch.setattr(sys, "argv", ["run.py", "--device", "cpu", "--output", str(tmp_path / "report.md")])
    assert run.main() == 1
    report = (tmp_path / "report.md").read_text()
    assert "FAILED: RuntimeError: out of memory" in report
    assert "measured" in report


def test_all_parts_are_there_and_training_needs_data(monkeypatch: pytest.MonkeyPatch) -> None:
    titles = [title for title, _ in run.sections(torch.device("cpu"), None, lambda: 0.0)]
    assert titles == [
        "Kernels, float32",
        "Kernels, float64",
        "Iterations in CUDA graphs",
        "A Gauss-Newton product",
        "Reductions",
        "Training on MNIST",
    ]
    assert "--root" in run.training_lines(torch.device("cpu"), None, lambda: 0.0)[0]


def test_training_says_who_reached_the_target_and_stops_when_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def trained(job, ranks, parent, name, root, settings):
        """A run that was made elsewhere."""
        asked.append((name, "run.device=cpu" in settings, "run.share_gpu=true" in settings))
        return {"best": {"test_accuracy": 0.98 if "newton" in name else 0.9}, "seconds": 3.0, "iterations": 7}

    monkeypatch.setattr(run, "trained", trained)
    left = iter([100.0, 100.0, *[0.0] * 100])
    lines = run.training_lines(torch.device("cpu"), "data", lambda: next(left))
    assert asked == [("newton-1", True, True), ("nlcg-1", True, True)]
    assert [word in line for line, word in zip(lines[4:7], ("3.0", "not reached", "no time left"), strict=True)] == [
        True
    ] * 3


@pytest.mark.parametrize("way", transport.WAYS)
def test_every_way_to_reduce_has_the_right_result(comm: Communicator, way: str) -> None:
    row = transport.measure(comm, torch.device("cpu"), way, 1 << 23, repeats=1)
    assert row["right"]
    assert (row["way"], row["bytes"]) == (way, 1 << 23)
