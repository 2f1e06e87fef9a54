"""The package's CUDA kernels on the processor, from the same sources by the host's C++ compiler."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import torch

from hpcopt.kernels.launch import SHARED_BYTES, Argument, definitions, source

SHIM = Path(__file__).with_name("emulation.hpp")
COMPILER = shutil.which("g++") or shutil.which("c++")
GUARD = 32
"""Numbers beside every tensor that a kernel must neither use nor change."""


class Emulation:
    """Runs kernels as ``hpcopt.kernels.launch.CupyLauncher`` does, on tensors of the processor.

    Every tensor is copied between numbers that are not, and every kernel runs twice, with threads and blocks in two
    orders: what reads beside a tensor, writes there or depends on the order is found.
    """

    shared_limit = SHARED_BYTES

    def __init__(self, folder: Path, code: str | None = None) -> None:
        self._folder, self._code = folder, source() if code is None else code
        self._libraries: dict[tuple[str, ...], ctypes.CDLL] = {}
        self.launches: list[str] = []

    def __call__(
        self,
        name: str,
        real: torch.dtype,
        blocks: int,
        threads: int,
        *arguments: Argument,
        shared: int = 0,
        half: bool = False,
    ) -> None:
        """Run one kernel."""
        assert threads % 32 == 0
        assert shared <= self.shared_limit
        self.launches.append(name)
        if blocks:
            library = self._library(definitions(real, half))
            found = [self._run(library, name, (blocks, threads, order), arguments) for order in (0, 1)]
            for tensor, first, second in zip(filter(is_tensor, arguments), *found, strict=True):
                assert torch.equal(bits(first), bits(second)), f"{name} depends on the order of threads"
                tensor.copy_(second)

    def _run(
        self, library: ctypes.CDLL, name: str, shape: tuple[int, int, int], arguments: tuple[Argument, ...]
    ) -> list[torch.Tensor]:
        """What the tensors among the arguments are afterwards."""
        guarded: dict[tuple[int, int], torch.Tensor] = {}
        given: list[ctypes._SimpleCData] = []
        found = []
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                # Arguments that are one tensor are one tensor in the copy.
                key = argument.data_ptr(), argument.numel()
                whole = guarded.setdefault(key, guard(argument))
                found.append(whole[GUARD : GUARD + argument.numel()].view(argument.shape))
                given.append(ctypes.c_void_p(whole.data_ptr() + GUARD * whole.element_size()))
            elif argument is None:
                given.append(ctypes.c_void_p(0))
            else:
                given.append(ctypes.c_longlong(argument) if isinstance(argument, int) else ctypes.c_double(argument))
        addresses = (ctypes.c_void_p * len(given))(*(ctypes.addressof(each) for each in given))
        assert library[f"emulated_{name}"](addresses, (ctypes.c_uint * 3)(*shape)) == 0, f"{name} waits for ever"
        for whole in guarded.values():
            assert whole[:GUARD].isnan().all(), f"{name} writes before a tensor"
            assert whole[-GUARD:].isnan().all(), f"{name} writes behind a tensor"
        return found

    def _library(self, options: tuple[str, ...]) -> ctypes.CDLL:
        if options not in self._libraries:
            self._libraries[options] = ctypes.CDLL(str(build(self._folder, options, self._code)))
        return self._libraries[options]


def build(folder: Path, options: tuple[str, ...], code: str) -> Path:
    """Compile all kernels with one choice of precisions."""
    names = re.findall(r'extern "C" __global__ void (\w+)\(', code)
    entries = [
        f'extern "C" int emulated_{name}(void** given, const unsigned* shape) '
        f"{{ return emulation::launch({name}, given, shape); }}"
        for name in names
    ]
    file = folder / f"kernels{''.join(options).replace('=', '-')}.cpp"
    file.write_text("\n".join([f'#include "{SHIM}"', code, *entries]))
    library = file.with_suffix(".so")
    command = [str(COMPILER), "-std=c++17", "-O0", "-w", "-shared", "-fPIC", *options, str(file), "-o", str(library)]
    subprocess.run(command, check=True, timeout=200)
    return library


def guard(tensor: torch.Tensor) -> torch.Tensor:
    """A flat copy between numbers that are not."""
    edge = tensor.new_full((GUARD,), torch.nan)
    return torch.cat([edge, tensor.flatten(), edge])


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor."""
    return tensor.contiguous().flatten().view(torch.uint8)


def is_tensor(argument: Argument) -> bool:
    """Whether an argument is one."""
    return isinstance(argument, torch.Tensor)
