"""The kernels on one device: errors against float64, and what they reach of the device's own rates in the same run.

Rates to compare with are those of a long copy (bytes read and written) and of a large matrix product. Bytes of a kernel
are those it must move, each array once; operations are those of its products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch

from benchmarks._report import table
from hpcopt.kernels.choice import kernels_on
from hpcopt.kernels.cupy_kernels import CupyKernels
from hpcopt.kernels.cupy_vectors import CupyVectors
from hpcopt.kernels.launch import CupyLauncher
from hpcopt.kernels.reference import NumpyKernels
from hpcopt.kernels.sweeps import Pair, Sweeps, TorchSweeps
from hpcopt.kernels.torch_kernels import TorchKernels

MEMORY_TARGET, PRODUCT_TARGET = 0.8, 0.7
"""Parts of the copy's bandwidth, for products with M, and of the matrix product's rate, for the recursion of M."""


class Size(NamedTuple):
    """b instances, C outputs, u and v units of two layers, n numbers of a vector, and what the ceilings move."""

    samples: int
    outputs: int
    inputs: int
    units: int
    numbers: int
    copied: int
    matrix: int


SIZES = {"cuda": Size(16384, 10, 1024, 1024, 1 << 26, 1 << 28, 8192), "cpu": Size(64, 10, 32, 48, 4096, 1 << 16, 128)}
"""On a device arrays are longer than its caches; the processor's are for a dry run."""


class Row(NamedTuple):
    """One kernel: its implementation, seconds, what it moves or computes, and its relative error."""

    kernel: str
    made_of: str
    seconds: float
    moved: float
    operations: float
    error: float


def wait(device: torch.device) -> None:
    """Until the device has done all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device, blocks: int = 9, least: float = 2e-3) -> float:
    """Of one call: the median over blocks that last a few milliseconds each, after warming up."""
    for _ in range(3):
        call()
    wait(device)
    start = perf_counter()
    call()
    wait(device)
    repeats = max(1, round(least / max(perf_counter() - start, 1e-9)))
    times = []
    for _ in range(blocks):
        start = perf_counter()
        for _ in range(repeats):
            call()
        wait(device)
        times.append((perf_counter() - start) / repeats)
    return median(times)


def ceilings(device: torch.device, dtype: torch.dtype, size: Size) -> tuple[float, float]:
    """Bytes a second of a copy, and operations a second of a matrix product."""
    source = torch.rand(size.copied, dtype=dtype, device=device)
    target = torch.empty_like(source)
    copied = seconds(lambda: target.copy_(source), device)
    a = torch.rand(size.matrix, size.matrix, dtype=dtype, device=device)
    b, c = a.clone(), torch.empty_like(a)
    multiplied = seconds(lambda: torch.mm(a, b, out=c), device)
    return 2 * source.nbytes / copied, 2 * size.matrix**3 / multiplied


def relative(found: torch.Tensor, expected: np.ndarray) -> float:
    """Difference in the 2-norm over that of what is expected; infinite where it is not a number."""
    error = float(np.linalg.norm(found.double().cpu().numpy() - expected) / np.linalg.norm(expected))
    return error if error == error else float("inf")


def factor_rows(kernels: TorchKernels, device: torch.device, dtype: torch.dtype, size: Size) -> list[Row]:
    """The products with factors, and their recursion; errors are those of the first instances."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        """Other numbers for every array."""
        return torch.randn(shape, generator=generator, dtype=dtype, device=device)

    b, c, u, v = size[:4]
    m, t, q, w = draw(b, c, v), draw(b, v), draw(b, c), draw(u, v)
    z, p, last = torch.tanh(draw(b, u)), torch.softmax(draw(b, c), 1), draw(v, c)
    few, exact = slice(0, 32), NumpyKernels()
    em, et, eq, ep, ew, ez = (
        x[few].double().cpu().numpy() if len(x) == b else x.double().cpu().numpy() for x in (m, t, q, p, w, z)
    )
    number, half = m.element_size(), m.to(torch.bfloat16)
    eh = half[few].double().cpu().numpy()
    found = []

    def add(
        kernel: str, call: Callable[[], torch.Tensor], expected: np.ndarray, moved: float, flops: float = 0
    ) -> None:
        """Measure one."""
        error = relative(call()[few], expected)
        found.append(Row(kernel, kernels.name, seconds(call, device), moved, flops, error))

    def pushed(factors: torch.Tensor) -> torch.Tensor:
        """Add M t to zeros."""
        out = torch.zeros_like(q)
        kernels.add_outputs(factors, t, out)
        return out

    def bent(factors: torch.Tensor) -> torch.Tensor:
        """The units of a block; what is used up is copied, which is counted."""
        return kernels.bend([factors], [t.clone()], q.clone(), p, 0.5)[0]

    pushed_exact = np.zeros_like(eq)
    exact.add_outputs(em, et, pushed_exact)
    add("q = M t", lambda: pushed(m), pushed_exact, m.nbytes + t.nbytes)
    add("r = M' y", lambda: kernels.units(m, q), exact.units(em, eq), m.nbytes + t.nbytes)
    add("block, r = M' B M t", lambda: bent(m), exact.bend([em], [et], eq.copy(), ep, 0.5)[0], m.nbytes + 4 * t.nbytes)
    add(
        "block, M in bfloat16",
        lambda: bent(half),
        exact.bend([eh], [et], eq.copy(), ep, 0.5)[0],
        half.nbytes + 4 * t.nbytes,
    )
    slopes = torch.tanh(t)
    expected = exact.last_factors(last.double().cpu().numpy(), "tanh", slopes[few].double().cpu().numpy())
    add("M before the outputs", lambda: kernels.last_factors(last, "tanh", slopes), expected, m.nbytes + t.nbytes)
    expected = exact.scale_by_slope("tanh", ez, exact.pull_back(em, ew))
    recursion = 2.0 * b * c * u * v
    moved = m.nbytes + number * b * u * (c + 1)
    add(
        "recursion of M", lambda: kernels.scale_by_slope("tanh", z, kernels.pull_back(m, w)), expected, moved, recursion
    )
    return found


def vector_rows(sweeps: Sweeps, device: torch.device, dtype: torch.dtype, size: Size) -> list[Row]:
    """The sweeps of NLCG, and with CUDA kernels also products and an iteration of conjugate gradients."""
    g, previous, h, d, z, w = (torch.rand(size.numbers, dtype=dtype, device=device) for _ in range(6))
    name, one = ("CuPy" if isinstance(sweeps, CupyVectors) else "torch"), g.nbytes
    expected = np.array([float(g.double() @ g.double())])

    def measured() -> torch.Tensor:
        """The first product."""
        return torch.stack([part[0].double() for part in sweeps.measure(g, previous, d, h, True)]).sum()[None]

    error = relative(measured(), expected)
    pair = Pair(1e-3, 1e-9, 1e-9, 0.0)
    calls: list[tuple[str, Callable[[], object], int]] = [
        ("NLCG, five products", measured, 4),
        ("NLCG, h and z", lambda: sweeps.precondition(g, previous, h, d, None, pair, 1.0), 7),
        ("NLCG, d and w", lambda: sweeps.move(z, d, w, None, beta=0.5, undo=0.0, rate=1e-6, leaves=0.0), 5),
    ]
    if isinstance(sweeps, CupyVectors):
        steps = sweeps.conjugate_steps(g, 0.0)
        calls.append(("conjugate gradients, vectors", lambda: steps.move(h, 1.0), 3 + 1 + 5 + 4))
    return [Row(kernel, name, seconds(call, device), passes * one, 0.0, error) for kernel, call, passes in calls]


def implementations(device: torch.device) -> list[tuple[TorchKernels, Sweeps]]:
    """Those that can run here."""
    found: list[tuple[TorchKernels, Sweeps]] = [(TorchKernels(), TorchSweeps())]
    if device.type == "cuda":
        try:
            launch = CupyLauncher(device)
        except ImportError:
            return found
        found.append((CupyKernels(launch), CupyVectors(launch)))
    return found


def verdict(rows: Sequence[Row], bandwidth: float, rate: float) -> list[str]:
    """One sentence a target, for the faster implementation of each kernel."""
    lines = []
    for kernel in ("q = M t", "r = M' y", "block, r = M' B M t", "recursion of M"):
        best = min((row for row in rows if row.kernel == kernel), key=lambda row: row.seconds)
        wanted = PRODUCT_TARGET if best.operations else MEMORY_TARGET
        part = best.operations / best.seconds / rate if best.operations else best.moved / best.seconds / bandwidth
        of = "the matrix product's rate" if best.operations else "the copy's bandwidth"
        met = "met" if part >= wanted else "NOT met"
        lines.append(f"- {kernel} ({best.made_of}): {part:.2f} of {of} (target: at least {wanted}): {met}")
    return lines


def report(device: torch.device, dtype: torch.dtype, size: Size | None = None) -> list[str]:
    """The section on kernels in one precision."""
    size = size or SIZES[device.type]
    bandwidth, rate = ceilings(device, dtype, size)
    rows = [
        row
        for kernels, sweeps in implementations(device)
        for row in (*factor_rows(kernels, device, dtype, size), *vector_rows(sweeps, device, dtype, size))
    ]
    cells = [
        [
            row.kernel,
            row.made_of,
            f"{1e3 * row.seconds:.3f}",
            f"{row.moved / row.seconds / 1e9:.0f}",
            f"{row.moved / row.seconds / bandwidth:.2f}",
            f"{row.operations / row.seconds / 1e12:.2f}" if row.operations else "",
            f"{row.error:.0e}",
        ]
        for row in rows
    ]
    head = ["kernel", "made of", "ms", "GB/s", "of the copy", "TFLOP/s", "relative error"]
    text = f"{size.samples:,} instances, {size.outputs} outputs, {size.inputs} and {size.units} units; vectors of "
    text += f"{size.numbers:,} numbers. Copy: {bandwidth / 1e9:.0f} GB/s; matrix product: {rate / 1e12:.2f} TFLOP/s. "
    text += f"Taken by a run: {kernels_on(device, dtype).reason}."
    return [text, "", *table(head, cells), "", *verdict(rows, bandwidth, rate)]
