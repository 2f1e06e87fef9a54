"""The processor gets torch's kernels; a device the faster ones, or torch's with the reason."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

from hpcopt.kernels import choice
from hpcopt.kernels.choice import TORCH, choose, kernels_on, seconds, sweeps_on
from hpcopt.kernels.compiled import CompiledSweeps
from hpcopt.kernels.cupy_kernels import CupyKernels
from hpcopt.kernels.cupy_vectors import CupyVectors
from hpcopt.kernels.sweeps import TorchSweeps
from hpcopt.kernels.torch_kernels import TorchKernels
from tests.support.emulation import Emulation


@pytest.fixture
def fresh() -> Iterator[None]:
    """What was found out before counts neither in the test nor behind it."""
    choice._on_processor.cache_clear()
    yield
    choice._on_processor.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_the_processor_has_torch_and_the_compiled_sweeps(
    compiled: CompiledSweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "compiled_sweeps", lambda: compiled)
    taken = kernels_on(torch.device("cpu"), torch.float32)
    assert (taken.factors, taken.vectors) == (TORCH.factors, None)
    assert taken.reason == "torch, and sweeps over long vectors compiled from C"
    assert sweeps_on(torch.zeros(1)) is compiled


@pytest.mark.usefixtures("fresh")
def test_without_the_library_torch_makes_the_sweeps_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "compiled_sweeps", lambda: "there was no compiler")
    assert kernels_on(torch.device("cpu"), torch.float32).reason == (
        "torch, also for sweeps over long vectors: there was no compiler"
    )
    assert isinstance(sweeps_on(torch.zeros(1)), TorchSweeps)


def test_the_faster_kernels_are_taken_and_said_with_what_was_measured(emulation: Emulation) -> None:
    candidates = {"torch": TorchKernels(), "CuPy": CupyKernels(emulation)}
    for times, name in (({"torch": 3e-4, "CuPy": 1e-4}, "CuPy"), ({"torch": 1e-4, "CuPy": 3e-4}, "torch")):
        taken = choose(candidates, CupyVectors(emulation), times)
        assert taken.factors is candidates[name]
        assert taken.reason == f"{name} (torch {1e6 * times['torch']:.0f} us, CuPy {1e6 * times['CuPy']:.0f} us)"


def test_every_candidate_is_measured_on_the_same_products(
    emulation: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "UNITS", 8)
    emulation.launches.clear()
    candidates = {"torch": TorchKernels(), "CuPy": CupyKernels(emulation)}
    times = seconds(candidates, torch.device("cpu"), torch.float32, samples=2)
    assert list(times) == ["torch", "CuPy"]
    assert min(times.values()) > 0
    assert emulation.launches == ["bent"] * choice.REPEATS


def test_without_cupy_a_device_has_torch_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    choice._measured.cache_clear()
    taken = kernels_on(torch.device("cuda", 0), torch.float32)
    assert taken.factors is TORCH.factors
    assert taken.reason == "torch, as CuPy is not installed"


def test_where_cupy_fails_a_device_has_torch_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: torch.device) -> None:
        """What a driver that is too old says."""
        raise RuntimeError("CUDA driver version is insufficient")

    monkeypatch.setattr(choice, "CupyLauncher", broken)
    choice._measured.cache_clear()
    taken = kernels_on(torch.device("cuda", 1), torch.float32)
    assert taken.reason == "torch, as CuPy failed: RuntimeError: CUDA driver version is insufficient"
    choice._measured.cache_clear()
