"""The processor gets torch's kernels; a device the faster ones, or torch's with the reason."""

from __future__ import annotations

import sys

import pytest
import torch

from hpcopt.kernels import choice
from hpcopt.kernels.choice import TORCH, choose, kernels_on, seconds, sweeps_on
from hpcopt.kernels.cupy_kernels import CupyKernels
from hpcopt.kernels.cupy_vectors import CupyVectors
from hpcopt.kernels.sweeps import TorchSweeps
from hpcopt.kernels.torch_kernels import TorchKernels
from tests.support.emulation import Emulation


def test_the_processor_has_torch_alone() -> None:
    assert kernels_on(torch.device("cpu"), torch.float32) is TORCH
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
