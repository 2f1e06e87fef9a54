"""The CUDA kernels for the factors compute what the reference does, in any order of threads and beside no tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.kernels.cupy_kernels import CupyKernels
from hpcopt.kernels.interface import ACTIVATIONS
from hpcopt.kernels.reference import NumpyKernels
from hpcopt.kernels.torch_kernels import TorchKernels
from hpcopt.objective.network.objective import NetworkObjective
from tests.support.emulation import Emulation

B, U, V, C = 3, 5, 70, 11  # more columns than two warps have lanes, more outputs than a block has warps
REFERENCE = NumpyKernels()
TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 1e-2}


@pytest.fixture
def kernels(emulation: Emulation) -> CupyKernels:
    return CupyKernels(emulation)


@pytest.fixture(params=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = getattr(torch, request.param)
    return found


def given(dtype: torch.dtype, *shapes: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def exact(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [tensor.to(torch.float64).numpy().copy() for tensor in tensors]


def assert_same(found: torch.Tensor, expected: np.ndarray, tolerance: float) -> None:
    difference = np.linalg.norm(found.to(torch.float64).numpy() - expected)
    assert difference <= tolerance * max(float(np.linalg.norm(expected)), 1.0)


def test_products_with_the_factors_are_those_of_the_reference(kernels: CupyKernels, dtype: torch.dtype) -> None:
    m, t, y, q = given(dtype, (B, C, V), (B, V), (B, C), (B, C))
    em, et, ey, eq = exact(m, t, y, q)
    kernels.add_outputs(m, t, q)
    REFERENCE.add_outputs(em, et, eq)
    assert_same(q, eq, TOLERANCE[dtype])
    assert_same(kernels.units(m, y), REFERENCE.units(em, ey), TOLERANCE[dtype])


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("widths", [(), (V,), (V, 1), (3, V, 2, 33), (1, 2, 3, 4, 5)])
@pytest.mark.parametrize("room", [0, 1 << 20])
def test_products_with_a_block_at_once_are_those_of_the_reference(
    kernels: CupyKernels, emulation: Emulation, monkeypatch, softmax: bool, widths: tuple[int, ...], room: int
) -> None:
    monkeypatch.setattr(emulation, "shared_limit", room or C * 4)
    dtype = torch.float32
    factors = given(dtype, *((B, C, v) for v in widths))
    units = given(dtype, *((B, v) for v in widths), seed=1)
    q, p = given(dtype, (B, C), (B, C), seed=2)
    p = torch.softmax(p, 1) if softmax else None
    eq, ep = exact(q)[0], exact(p)[0] if softmax else None
    expected = REFERENCE.bend(exact(*factors), exact(*units), eq, ep, 0.3)
    found = kernels.bend(factors, units, q, p, 0.3)
    assert_same(q, eq, TOLERANCE[dtype])
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other, TOLERANCE[dtype])


def test_a_block_is_one_launch_and_more_layers_than_fit_are_done_by_parts(
    kernels: CupyKernels, emulation: Emulation
) -> None:
    for widths, names in (((2, 3), {"bent"}), ((1, 2, 3, 4, 5), {"add_outputs", "units"})):
        emulation.launches.clear()
        factors = given(torch.float32, *((B, C, v) for v in widths))
        units = given(torch.float32, *((B, v) for v in widths))
        kernels.bend(factors, units, torch.zeros(B, C), None, 1.0)
        assert set(emulation.launches) == names
        assert len(emulation.launches) == (1 if names == {"bent"} else 2 * len(widths))


def test_factors_in_half_the_bytes_are_used_as_they_are_rounded(kernels: CupyKernels) -> None:
    m, t, q = given(torch.float32, (B, C, V), (B, V), (B, C))
    half = m.to(torch.bfloat16)
    eq, eh = exact(q)[0], exact(half)[0]
    (expected,) = REFERENCE.bend([eh], exact(t), eq, None, 1.0)
    (found,) = kernels.bend([half], [t], q, None, 1.0)
    assert_same(q, eq, TOLERANCE[torch.float32])
    assert_same(found, expected, TOLERANCE[torch.float32])
    assert_same(kernels.units(half, q), REFERENCE.units(eh, eq), TOLERANCE[torch.float32])
    assert_same(half, exact(m)[0], TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_slopes_and_the_factors_before_the_output_layer_are_those_of_the_reference(
    kernels: CupyKernels, dtype: torch.dtype, activation: str
) -> None:
    w, z, d, m = given(dtype, (V, C), (B, V), (B, V), (B, C, V))
    z[0, 0] = 0
    (ez,) = exact(z)
    for target in (d, m):
        expected = REFERENCE.scale_by_slope(activation, ez, exact(target)[0])
        assert kernels.scale_by_slope(activation, z, target) is target
        assert_same(target, expected, TOLERANCE[dtype])
    expected = REFERENCE.last_factors(exact(w)[0], activation, ez)
    assert_same(kernels.last_factors(w, activation, z), expected, TOLERANCE[dtype])


def test_nothing_is_started_for_no_instances(kernels: CupyKernels) -> None:
    z, q = torch.zeros(0, V), torch.zeros(0, C)
    assert kernels.scale_by_slope("tanh", z, z) is z
    assert kernels.last_factors(torch.zeros(V, C), "tanh", z).shape == (0, C, V)
    (r,) = kernels.bend([torch.zeros(0, C, V)], [z], q, None, 1.0)
    assert r.shape == (0, V)


def test_arrays_in_another_order_are_read_right(kernels: CupyKernels) -> None:
    def turned(tensor: torch.Tensor) -> torch.Tensor:
        """The same numbers, column by column in memory."""
        return tensor.mT.contiguous().mT

    m, t, q, w, z = given(torch.float64, (B, C, V), (B, V), (B, C), (V, C), (B, V))
    p = torch.softmax(q, 1)
    found, plain = kernels, TorchKernels()
    torch.testing.assert_close(found.units(turned(m), turned(q)), plain.units(m, q))
    torch.testing.assert_close(found.last_factors(turned(w), "tanh", turned(z)), plain.last_factors(w, "tanh", z))
    for change in (turned, torch.clone):
        one, other = change(q), q.clone()
        found.add_outputs(turned(m), turned(t), one)
        plain.add_outputs(m, t, other)
        torch.testing.assert_close(one, other)
        one, other = change(q), q.clone()
        units = found.bend([turned(m)], [turned(t)], one, turned(p), 0.5)
        torch.testing.assert_close(units, plain.bend([m], [t.clone()], other, p, 0.5))
        torch.testing.assert_close(one, other)
        one = found.scale_by_slope("tanh", turned(z), change(m))
        torch.testing.assert_close(one, plain.scale_by_slope("tanh", z, m.clone()))


def test_what_a_kernel_would_misread_is_refused(kernels: CupyKernels) -> None:
    m, t, q = given(torch.float32, (B, C, V), (B, V), (B, C))
    for wrong in (m.double(), m.half()):
        with pytest.raises(ValueError, match="contiguous ones of its own kind"):
            kernels.bend([wrong], [t], q, None, 1.0)
    with pytest.raises(ValueError, match="contiguous"):
        kernels.units(m, q.double())


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
@pytest.mark.parametrize("by_layer", [False, True])
def test_a_network_has_the_same_products_with_them(
    kernels: CupyKernels, emulation: Emulation, comm: Communicator, loss: str, by_layer: bool
) -> None:
    inputs, labels = given(torch.float64, (6, 5))[0], torch.arange(6) % 3
    found = []
    for taken in (TorchKernels(), kernels):
        emulation.launches.clear()
        objective = NetworkObjective([5, 7, 4, 3], "tanh", loss, inputs, labels, comm, weight_decay=0.1)
        objective.network.kernels = taken
        w = objective.initial_vector()
        linear = objective.linearize(w, objective.full_batch)
        v = given(torch.float64, (len(w),), seed=3)[0]
        found.append((linear.block.product(v, by_layer), linear.gauss_newton(v)))
    assert emulation.launches.count("bent") == (3 if by_layer else 1)
    assert {"last_factors", "scale_by_slope", "add_outputs", "units"} <= set(emulation.launches)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
