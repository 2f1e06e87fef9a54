"""The CUDA sources compile, for every choice of precisions, where there is a CUDA compiler; no device is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from hpcopt.kernels.launch import definitions, source

NVCC = shutil.which("nvcc")
CHOICES = [(torch.float32, False), (torch.float64, False), (torch.float32, True)]


@pytest.mark.skipif(NVCC is None, reason="no CUDA compiler (nvcc) on PATH")
def test_the_kernels_compile_without_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "kernels.cu"
    file.write_text(source())
    compile_it = [str(NVCC), "-ptx", "-arch=sm_80", "-std=c++14", "-Werror", "all-warnings", str(file)]
    commands = [
        [*compile_it, *definitions(*choice), "-o", str(tmp_path / f"{number}.ptx")]
        for number, choice in enumerate(CHOICES)
    ]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in running:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    names = set(re.findall(r'extern "C" __global__ void (\w+)\(', source()))
    assert len(names) == 13
    for number in range(len(CHOICES)):
        assert set(re.findall(r"\.entry (\w+)\(", (tmp_path / f"{number}.ptx").read_text())) == names


def test_arguments_are_eight_bytes_each() -> None:
    """As ``hpcopt.kernels.launch`` passes them: pointers, long long and double."""
    for arguments in re.findall(r'extern "C" __global__ void \w+\(([^)]*)\)', source()):
        for argument in arguments.split(","):
            assert "*" in argument or argument.split()[0] in ("count", "double"), argument
