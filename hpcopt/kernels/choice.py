"""Which kernels a device gets.

The processor has torch's, and the sweeps in C where there was a compiler for them; a GPU the faster of torch's and
CuPy's, measured once.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from time import perf_counter
from typing import NamedTuple

import torch

from hpcopt.kernels.compiled import compiled_sweeps
from hpcopt.kernels.cupy_kernels import CupyKernels
from hpcopt.kernels.cupy_vectors import EVERY, CupyVectors
from hpcopt.kernels.graphs import Capture, CudaCapture
from hpcopt.kernels.launch import CupyLauncher
from hpcopt.kernels.sweeps import Sweeps, TorchSweeps
from hpcopt.kernels.torch_kernels import TorchKernels

SAMPLES, OUTPUTS, UNITS = 2048, 10, 512
"""Of the products that are measured: 40 MB of factors in float32, more than most caches hold."""

REPEATS = 5


class Choice(NamedTuple):
    """What a device works with.

    Attributes:
        factors: the products with the Jacobian's factors.
        vectors: CUDA kernels for long vectors; None where torch's operations serve.
        reason: the name of the kernels, and why where that is not plain.
        sweeps: over long vectors.
    """

    factors: TorchKernels
    vectors: CupyVectors | None
    reason: str
    sweeps: Sweeps = TorchSweeps()


TORCH = Choice(TorchKernels(), None, TorchKernels.name)


def kernels_on(device: torch.device, dtype: torch.dtype) -> Choice:
    """The choice for a device and a precision. Local: ranks may differ."""
    if device.type == "cuda":
        return _measured(torch.device("cuda", device.index or 0), dtype)
    return _on_processor() if device.type == "cpu" else TORCH


def sweeps_on(vector: torch.Tensor) -> Sweeps:
    """The sweeps where a vector lies."""
    return kernels_on(vector.device, vector.dtype).sweeps


@cache
def _on_processor() -> Choice:
    found = compiled_sweeps()
    if isinstance(found, str):
        return TORCH._replace(reason=f"torch, also for sweeps over long vectors: {found}")
    return TORCH._replace(reason="torch, and sweeps over long vectors compiled from C", sweeps=found)


@cache
def _measured(device: torch.device, dtype: torch.dtype) -> Choice:
    try:
        launch = CupyLauncher(device)
        candidates = {kernels.name: kernels for kernels in (TORCH.factors, CupyKernels(launch))}
        vectors = with_graphs(CupyVectors(launch), CudaCapture(device), device, dtype)
        return choose(candidates, vectors, seconds(candidates, device, dtype))
    except ImportError:
        return TORCH._replace(reason="torch, as CuPy is not installed")
    except Exception as error:  # a toolkit that does not fit the driver fails in many ways; torch works all the same
        return TORCH._replace(reason=f"torch, as CuPy failed: {type(error).__name__}: {error}"[:200])


def choose(candidates: Mapping[str, TorchKernels], vectors: CupyVectors, times: Mapping[str, float]) -> Choice:
    """The fastest kernels for the factors, and those for vectors, with what was measured."""
    name = min(times, key=lambda each: times[each])
    told = ", ".join(f"{each} {1e6 * seconds:.0f} us" for each, seconds in times.items())
    recorded = ", iterations in CUDA graphs" if vectors.capture is not None else ""
    return Choice(candidates[name], vectors, f"{name} ({told}){recorded}", vectors)


def with_graphs(vectors: CupyVectors, capture: Capture, device: torch.device, dtype: torch.dtype) -> CupyVectors:
    """The same kernels with recorded iterations, if those come to the same numbers in a trial; else as they are."""
    matrix = torch.rand(64, 64, dtype=dtype, device=device)
    matrix, right = matrix @ matrix.T, matrix[0].contiguous()
    recording = CupyVectors(vectors.launch, capture)
    found = []
    try:
        for kind in (vectors, recording):
            steps = kind.conjugate_steps(right, 0.0)
            for _ in range(2 * EVERY):
                steps.advance(matrix.mv, 0.1)
            found.append(torch.stack([steps.direction, steps.residual]))
    except RuntimeError:
        return vectors
    return recording if bool(torch.equal(*found)) else vectors


def seconds(
    candidates: Mapping[str, TorchKernels], device: torch.device, dtype: torch.dtype, samples: int = SAMPLES
) -> dict[str, float]:
    """Seconds of the products of a rank's block with the factors, the fastest of a few, for each of the kernels."""
    factors = torch.rand(samples, OUTPUTS, UNITS, dtype=dtype, device=device)
    units = torch.rand(samples, UNITS, dtype=dtype, device=device)
    outputs = torch.full((samples, OUTPUTS), 1 / OUTPUTS, dtype=dtype, device=device)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(REPEATS):
        for name, kernels in candidates.items():
            given = [factors], [units.clone()], outputs.clone(), outputs, 1.0
            _wait(device)
            start = perf_counter()
            kernels.bend(*given)
            _wait(device)
            times[name].append(perf_counter() - start)
    # The first of each compiles.
    return {name: min(own[1:]) for name, own in times.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
