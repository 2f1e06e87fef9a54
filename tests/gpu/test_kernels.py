"""The CUDA kernels on a GPU compute what the reference does in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpcopt.kernels.choice import TORCH, kernels_on
from hpcopt.kernels.cupy_kernels import CupyKernels
from hpcopt.kernels.cupy_vectors import EVERY, CupyVectors
from hpcopt.kernels.graphs import CudaCapture
from hpcopt.kernels.launch import CupyLauncher
from hpcopt.kernels.reference import NumpyKernels
from hpcopt.kernels.sweeps import Pair, TorchSweeps
from hpcopt.linalg import conjugate_gradient
from hpcopt.linalg.conjugate_gradient import conjugate_gradients
from hpcopt.objective.vectors import inner

REFERENCE = NumpyKernels()
B, C, U, V = 100, 11, 37, 300
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5}
PRECISIONS = [torch.float64, torch.float32]


def given(device: torch.device, dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for shape in shapes]


def exact(tensor: torch.Tensor) -> np.ndarray:
    found: np.ndarray = tensor.double().cpu().numpy().copy()
    return found


def assert_same(found: torch.Tensor, expected: np.ndarray, tolerance: float) -> None:
    assert np.linalg.norm(exact(found) - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("softmax", [True, False])
def test_products_with_a_block_at_once_are_those_of_the_reference(
    launcher: CupyLauncher, device: torch.device, dtype: torch.dtype, softmax: bool
) -> None:
    m, n, t, s, q, p = given(device, dtype, (B, C, V), (B, C, U), (B, V), (B, U), (B, C), (B, C))
    p = torch.softmax(p, 1) if softmax else None
    eq = exact(q)
    expected = REFERENCE.bend([exact(m), exact(n)], [exact(t), exact(s)], eq, exact(p) if softmax else None, 0.3)
    found = CupyKernels(launcher).bend([m, n], [t, s], q, p, 0.3)
    assert_same(q, eq, TOLERANCE[dtype])
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other, TOLERANCE[dtype])


def test_factors_may_need_more_shared_memory_than_comes_unasked(launcher: CupyLauncher, device: torch.device) -> None:
    m, t, q = given(device, torch.float32, (4, 10, 2000), (4, 2000), (4, 10))
    eq = exact(q)
    (expected,) = REFERENCE.bend([exact(m)], [exact(t)], eq, None, 1.0)
    (found,) = CupyKernels(launcher).bend([m], [t], q, None, 1.0)
    assert_same(found, expected, TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_the_recursion_of_factors_is_that_of_the_reference(
    launcher: CupyLauncher, device: torch.device, dtype: torch.dtype, activation: str
) -> None:
    m, w, z, last = given(device, dtype, (B, C, V), (U, V), (B, U), (V, C))
    kernels = CupyKernels(launcher)
    expected = REFERENCE.scale_by_slope(activation, exact(z), REFERENCE.pull_back(exact(m), exact(w)))
    assert_same(kernels.scale_by_slope(activation, z, kernels.pull_back(m, w)), expected, TOLERANCE[dtype])
    (values,) = given(device, dtype, (B, V))
    expected = REFERENCE.last_factors(exact(last), activation, exact(values))
    assert_same(kernels.last_factors(last, activation, values), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_products_and_sweeps_of_long_vectors_are_those_in_float64(
    launcher: CupyLauncher, device: torch.device, dtype: torch.dtype
) -> None:
    vectors, n = CupyVectors(launcher), 1 << 20
    x, y = given(device, dtype, (2, n), (6, n))
    torch.testing.assert_close(vectors.inner(x, y), x.double() @ y.double().T, rtol=1e-10, atol=1e-8)
    own = given(device, dtype, *[(n,)] * 6)
    own[2].abs_()
    both = [own, [each.double() for each in own]]
    for sweeps, (g, previous, h, d, w, mean) in zip((vectors, TorchSweeps()), both, strict=True):
        sweeps.precondition(g, previous, h, d, None, Pair(0.5, 0.3, 0.2, -0.01), 1e-2)
        sweeps.move(g, d, w, mean, beta=0.7, undo=0.1, rate=0.1, leaves=0.2)
    for found, expected in zip(*both, strict=True):
        assert_same(found, exact(expected), TOLERANCE[dtype])


def test_conjugate_gradients_with_their_scalars_on_the_device_take_the_same_steps(
    launcher: CupyLauncher, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    (a, g) = given(device, torch.float64, (200, 200), (200,))
    a = a @ a.T / 200
    options = {"tolerance": 1e-6, "most": 400}
    host = conjugate_gradients(a.mv, g, 0.1, inner, **options)
    monkeypatch.setattr(conjugate_gradient, "kernels_on", lambda *_: TORCH._replace(vectors=CupyVectors(launcher)))
    found = conjugate_gradients(a.mv, g, 0.1, inner, **options, local=True)
    assert found.iterations == host.iterations
    torch.testing.assert_close(found.direction, host.direction, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_recorded_iterations_have_the_bits_of_those_that_are_not(
    launcher: CupyLauncher, device: torch.device, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    m, z, g = given(device, dtype, (B, C, V), (B, U), (U * V,))
    kernels, zeros = CupyKernels(launcher), torch.zeros(B, C, dtype=dtype, device=device)

    def product(v: torch.Tensor) -> torch.Tensor:
        """Of a block of one layer."""
        (errors,) = kernels.bend([m], [kernels.affine(z, v.view(U, V), None)], zeros.clone(), None, 1 / B)
        total = torch.zeros_like(v)
        kernels.add_gradient(z, errors, total.view(U, V), None)
        return total

    found = []
    for capture in (None, CudaCapture(device)):
        chosen = TORCH._replace(vectors=CupyVectors(launcher, capture))
        monkeypatch.setattr(conjugate_gradient, "kernels_on", lambda *_, chosen=chosen: chosen)
        found.append(conjugate_gradients(product, g, 0.1, inner, tolerance=0.0, most=3 * EVERY, local=True))
    assert found[0].iterations == found[1].iterations
    assert torch.equal(found[0].direction, found[1].direction)


@pytest.mark.usefixtures("launcher")
def test_the_choice_is_measured_and_said(device: torch.device) -> None:
    reason = kernels_on(device, torch.float32).reason
    assert "torch " in reason
    assert "CuPy " in reason
    assert "CUDA graphs" in reason
