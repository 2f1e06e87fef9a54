"""The package's CUDA kernels, run on the processor."""

from __future__ import annotations

import pytest

from tests.support.emulation import COMPILER, Emulation


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Emulation:
    """Starts kernels compiled by the host's C++ compiler."""
    if COMPILER is None:
        pytest.skip("no C++ compiler on PATH, which runs the CUDA kernels on the processor")
    return Emulation(tmp_path_factory.mktemp("emulation"))
