"""Kernels of our own in CUDA, compiled by CuPy at run time and started on torch's stream.

Torch owns all memory: a kernel gets the addresses of tensors, so that nothing is copied between the two libraries, and
torch's order of work on its stream holds for the kernels as well.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch

Argument: TypeAlias = "torch.Tensor | int | float | None"
"""A tensor is passed as its address, None as the null pointer, an int as long long, a float as double."""

REALS = {torch.float32: "float", torch.float64: "double"}

SHARED_BYTES = 48 * 1024
"""Shared memory of a block that needs no permission."""


class Launcher(Protocol):
    """Starts kernels of the package's sources."""

    shared_limit: int
    """Most bytes of shared memory that a block may ask for."""

    def __call__(
        self, name: str, real: torch.dtype, blocks: int, threads: int, *arguments: Argument, shared: int = 0,
        half: bool = False,
    ) -> None:  # fmt: skip
        """Start kernel ``name``.

        Args:
            name: of a function in ``hpcopt/kernels/cuda``.
            real: the precision of the vectors, float32 or float64.
            blocks: blocks of threads; with 0 nothing happens.
            threads: of a block, a multiple of 32.
            arguments: in the order of the function's.
            shared: bytes of shared memory of a block.
            half: factors of the Jacobian are stored in bfloat16.
        """
        ...


@cache
def source() -> str:
    """All kernels in one text."""
    folder = resources.files("hpcopt.kernels") / "cuda"
    return "\n".join((folder / name).read_text() for name in ("shared.cuh", "factors.cu", "vectors.cu"))


def definitions(real: torch.dtype, half: bool) -> tuple[str, ...]:
    """The compiler's options that choose precisions."""
    return (f"-DREAL={REALS[real]}", *(["-DBFLOAT16"] if half else []))


class CupyLauncher:
    """Compiles and starts kernels on one device through CuPy.

    Args:
        device: the CUDA device.

    Raises:
        ImportError: there is no CuPy.
    """

    def __init__(self, device: torch.device) -> None:
        import cupy

        self._cupy, self._device = cupy, torch.device("cuda", device.index or 0)
        self._modules: dict[tuple[str, ...], Any] = {}
        self._kernels: dict[tuple[str, torch.dtype, bool], Any] = {}
        attributes = cupy.cuda.Device(self._device.index).attributes
        self.shared_limit = int(attributes.get("MaxSharedMemoryPerBlockOptin", SHARED_BYTES)) // 2
        """Half of what there is, so that two blocks fit on a multiprocessor."""

    def __call__(
        self, name: str, real: torch.dtype, blocks: int, threads: int, *arguments: Argument, shared: int = 0,
        half: bool = False,
    ) -> None:  # fmt: skip
        """Start a kernel on torch's current stream."""
        if not blocks:
            return
        cuda, index = self._cupy.cuda, self._device.index
        stream = cuda.ExternalStream(torch.cuda.current_stream(self._device).cuda_stream, index)
        with cuda.Device(index), stream:
            kernel = self._kernel(name, real, half)
            if shared > SHARED_BYTES and kernel.max_dynamic_shared_size_bytes < shared:
                kernel.max_dynamic_shared_size_bytes = shared
            kernel((blocks,), (threads,), tuple(map(_passed, arguments)), shared_mem=shared)

    def _kernel(self, name: str, real: torch.dtype, half: bool) -> Any:
        key, options = (name, real, half), definitions(real, half)
        if key not in self._kernels:
            if options not in self._modules:
                self._modules[options] = self._cupy.RawModule(code=source(), options=("--std=c++14", *options))
            self._kernels[key] = self._modules[options].get_function(name)
        return self._kernels[key]


def _passed(argument: Argument) -> Any:
    """An argument as CuPy takes it, always eight bytes."""
    if argument is None:
        return np.uint64(0)
    if isinstance(argument, torch.Tensor):
        return np.uint64(argument.data_ptr())
    return np.int64(argument) if isinstance(argument, int) else np.float64(argument)


def check_arguments(real: torch.dtype, device: torch.device, *tensors: torch.Tensor) -> None:
    """Refuse what a kernel would misread: it sees addresses alone.

    Raises:
        ValueError: a tensor is of another precision, on another device, or not row-major contiguous.
    """
    for tensor in tensors:
        if tensor.dtype != real or tensor.device != device or not tensor.is_contiguous():
            raise ValueError(
                f"a kernel for {real} on {device} was given a tensor of {tensor.dtype} on {tensor.device} with shape "
                f"{tuple(tensor.shape)} and strides {tensor.stride()}; it takes contiguous ones of its own kind alone"
            )
