"""Tests on a GPU; skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from hpcopt.kernels.launch import CupyLauncher


@pytest.fixture
def device() -> torch.device:
    """The first GPU."""
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")
    return torch.device("cuda", 0)


@pytest.fixture
def launcher(device: torch.device) -> CupyLauncher:
    """Starts the package's kernels on it."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    return CupyLauncher(device)
