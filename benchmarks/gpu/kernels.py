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
from hpcopt.kernels.graphs import CudaCapture
from hpcopt.kernels.launch import CupyLauncher
from hpcopt.kernels.reference import NumpyKernels
from hpcopt.kernels.sweeps import Pair, Sweeps, TorchSweeps
from hpcopt.kernels.torch_kernels import TorchKernels

MEMORY_TARGET, PRODUCT_TARGET = 0.8, 0.7
"""Parts of the copy's bandwidth, for products with M, and of the matrix product's rate, for the recursion of M."""


FEW = 32
"""Instances whose results are compared with those in float64."""


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


class Factors:
    """Arrays of one size on a device, and the rows of one implementation; errors are those of the first instances."""

    def __init__(self, kernels: TorchKernels, device: torch.device, dtype: torch.dtype, size: Size) -> None:
        self.kernels, self.device, self.rows = kernels, device, list[Row]()
        self._generator, self._dtype = torch.Generator(device).manual_seed(0), dtype
        b, c, u, v = size[:4]
        self.m, self.t, self.q = self._draw(b, c, v), self._draw(b, v), self._draw(b, c)
        self.w, self.last = self._draw(u, v), self._draw(v, c)
        self.z, self.p = torch.tanh(self._draw(b, u)), torch.softmax(self._draw(b, c), 1)
        self.operations = 2.0 * b * c * u * v

    def _draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator, dtype=self._dtype, device=self.device)

    def add(
        self, kernel: str, call: Callable[[], torch.Tensor], expected: np.ndarray, moved: float, operations: float = 0
    ) -> None:
        """Measure one kernel."""
        error = relative(call()[:FEW], expected)
        self.rows.append(Row(kernel, self.kernels.name, seconds(call, self.device), moved, operations, error))

    def pushed(self) -> torch.Tensor:
        """Add M t to zeros."""
        out = torch.zeros_like(self.q)
        self.kernels.add_outputs(self.m, self.t, out)
        return out

    def bent(self, factors: torch.Tensor) -> torch.Tensor:
        """The units of a block; what is used up is copied, which is counted."""
        return self.kernels.bend([factors], [self.t.clone()], self.q.clone(), self.p, 0.5)[0]


def exact(*tensors: torch.Tensor) -> list[np.ndarray]:
    """The first instances in float64."""
    return [tensor[:FEW].double().cpu().numpy().copy() for tensor in tensors]


def factor_rows(kernels: TorchKernels, device: torch.device, dtype: torch.dtype, size: Size) -> list[Row]:
    """The products with factors, and their recursion."""
    given, reference = Factors(kernels, device, dtype, size), NumpyKernels()
    m, t, q, p = exact(given.m, given.t, given.q, given.p)
    once = given.m.nbytes + given.t.nbytes
    outputs = np.zeros_like(q)
    reference.add_outputs(m, t, outputs)
    given.add("q = M t", given.pushed, outputs, once)
    given.add("r = M' y", lambda: kernels.units(given.m, given.q), reference.units(m, q), once)
    half = given.m.to(torch.bfloat16)
    for kernel, factors in (("block, r = M' B M t", given.m), ("block, M in bfloat16", half)):
        expected = reference.bend(exact(factors), [t], q.copy(), p, 0.5)[0]
        given.add(kernel, lambda factors=factors: given.bent(factors), expected, factors.nbytes + 4 * given.t.nbytes)
    _recursion(given, reference, m, once)
    return given.rows


def _recursion(given: Factors, reference: NumpyKernels, m: np.ndarray, once: float) -> None:
    """The rows of what makes M, layer by layer."""
    kernels, slopes = given.kernels, torch.tanh(given.t)
    last, w = (each.double().cpu().numpy() for each in (given.last, given.w))
    expected = reference.last_factors(last, "tanh", exact(slopes)[0])
    given.add("M before the outputs", lambda: kernels.last_factors(given.last, "tanh", slopes), expected, once)
    expected = reference.scale_by_slope("tanh", exact(given.z)[0], reference.pull_back(m, w))
    moved = given.m.nbytes + given.z.nbytes * (1 + m.shape[1])
    given.add(
        "recursion of M",
        lambda: kernels.scale_by_slope("tanh", given.z, kernels.pull_back(given.m, given.w)),
        expected,
        moved,
        given.operations,
    )


def vector_rows(sweeps: Sweeps, device: torch.device, dtype: torch.dtype, size: Size) -> list[Row]:
    """The sweeps of NLCG, and with CUDA kernels also products and an iteration of conjugate gradients."""
    g, previous, h, d, z, w = (torch.rand(size.numbers, dtype=dtype, device=device) for _ in range(6))
    name, one = ("CuPy" if isinstance(sweeps, CupyVectors) else "torch"), g.nbytes
    expected = np.array([float(g.double() @ g.double())])

    def measured() -> torch.Tensor:
        """The first product."""
        return torch.stack([part[0].double() for part in sweeps.measure(g, previous, d, z)]).sum()[None]

    error = relative(measured(), expected)
    pair = Pair(1e-3, 1e-9, 1e-9, 0.0)
    calls: list[tuple[str, Callable[[], object], int]] = [
        ("NLCG, six products", measured, 4),
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


def iteration_lines(
    device: torch.device,
    kinds: Sequence[CupyVectors] | None = None,
    sides: Sequence[int] = (256, 2048),
    most: int = 200,
) -> list[str]:
    """Conjugate gradients with kernels started one by one and recorded, which is counted; ``kinds`` are these two."""
    if kinds is None:
        if device.type != "cuda":
            return ["Not measured: the processor has no CUDA graphs."]
        launch = CupyLauncher(device)
        kinds = [CupyVectors(launch), CupyVectors(launch, CudaCapture(device))]
    cells = []
    for side in sides:
        matrix, right = torch.rand(side, side, device=device) / side, torch.rand(side, device=device)
        matrix = matrix @ matrix.T

        def solve(vectors: CupyVectors, matrix: torch.Tensor = matrix, right: torch.Tensor = right) -> None:
            """All iterations."""
            steps = vectors.conjugate_steps(right, 0.0)
            for _ in range(most):
                steps.advance(matrix.mv, 1e-3)
            steps.end()

        times = [seconds(lambda vectors=vectors: solve(vectors), device) / most for vectors in kinds]
        cells.append([f"{side:,}", *(f"{1e6 * each:.1f}" for each in times), f"{times[1] / times[0]:.2f}"])
    head = ["numbers", "one by one, us an iteration", "recorded, us", "recorded / one by one"]
    return [f"{most} iterations with a dense matrix in float32.", "", *table(head, cells)]


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
