"""The package's CUDA kernels, run on the processor, and its functions in C."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcopt.kernels.compiled import CompiledSweeps
from tests.support.emulation import COMPILER, Emulation

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Emulation:
    """Starts kernels compiled by the host's C++ compiler."""
    if COMPILER is None:
        pytest.skip("no C++ compiler on PATH, which runs the CUDA kernels on the processor")
    return Emulation(tmp_path_factory.mktemp("emulation"))


Build = Callable[..., list[Path]]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Makes what setup.py compiles, in a folder of its own, with other variables for the compiler if need be."""

    def run(**variables: str) -> list[Path]:
        """The libraries that were made."""
        folder = tmp_path_factory.mktemp("library")
        folders = f"--build-lib={folder}", f"--build-temp={folder}"
        command, environment = [sys.executable, "setup.py", "build_ext", *folders], os.environ | variables
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=120)
        return list(folder.rglob("_vectors*.so"))

    return run


@pytest.fixture(scope="session")
def library(build: Build) -> Path:
    """The sweeps in C, from the sources as they are."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler on PATH")
    (made,) = build()
    return made


@pytest.fixture(scope="session")
def compiled(library: Path) -> CompiledSweeps:
    """The same for tensors."""
    return CompiledSweeps(ctypes.CDLL(str(library)))
