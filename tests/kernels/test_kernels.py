"""Every implementation of the kernels computes what the reference does, and the reference what the definitions say."""

import numpy as np
import pytest
import torch

from hpcopt.kernels.interface import ACTIVATIONS
from hpcopt.kernels.reference import NumpyKernels
from hpcopt.kernels.torch_kernels import TorchKernels

B, U, V, C = 5, 4, 3, 2
REFERENCE, TORCH = NumpyKernels(), TorchKernels()


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    return request.param


def arrays(*shapes, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(shape) for shape in shapes]


def tensors(dtype, *given):
    return [torch.tensor(array, dtype=getattr(torch, dtype)) for array in given]


def same(tensor, array, dtype):
    assert tensor.dtype == getattr(torch, dtype)
    assert tensor.shape == array.shape
    np.testing.assert_allclose(tensor.numpy(), array, rtol=1e-13 if dtype == "float64" else 2e-6, atol=1e-6)
    assert tensor.is_contiguous()


@pytest.mark.parametrize("biased", [True, False])
def test_a_layer_is_its_matrix_and_its_biases(dtype, biased):
    z, v, b = arrays((B, U), (U, V), (V,))
    expected = REFERENCE.affine(z, v, b if biased else None)
    np.testing.assert_allclose(expected, [[z[i] @ v[:, j] + biased * b[j] for j in range(V)] for i in range(B)])
    tz, tv, tb = tensors(dtype, z, v, b)
    same(TORCH.affine(tz, tv, tb if biased else None), expected, dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_slopes_of_activations_are_found_from_their_values(dtype, activation):
    (s,) = arrays((B, V))
    s[0, 0] = 0
    (ts,) = tensors(dtype, s)
    expected = REFERENCE.activate(activation, s.copy())
    kept = ts.clone()
    assert TORCH.activate(activation, kept) is kept
    same(kept, expected, dtype)
    np.testing.assert_allclose(expected, getattr(torch, activation)(torch.tensor(s)).numpy(), rtol=1e-14)
    slope = torch.func.vmap(torch.func.vmap(torch.func.grad(getattr(torch, activation))))(torch.tensor(s)).numpy()
    for target in arrays((B, V), (B, C, V), seed=1):
        scaled = REFERENCE.scale_by_slope(activation, expected, target.copy())
        np.testing.assert_allclose(scaled, target * (slope if target.ndim == 2 else slope[:, None]), atol=1e-14)
        (mine,) = tensors(dtype, target)
        assert TORCH.scale_by_slope(activation, kept, mine) is mine
        same(mine, scaled, dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_last_factors_are_weights_times_slopes(dtype, activation):
    w, z = arrays((U, C), (B, U))
    z = REFERENCE.activate(activation, z)
    ones = np.ones((B, U))
    slope = REFERENCE.scale_by_slope(activation, z, ones)
    expected = REFERENCE.last_factors(w, activation, z)
    np.testing.assert_allclose(expected, [[w[:, c] * slope[i] for c in range(C)] for i in range(B)])
    tw, tz = tensors(dtype, w, z)
    same(TORCH.last_factors(tw, activation, tz), expected, dtype)


@pytest.mark.parametrize("shape", [(B, V), (B, C, V)])
def test_errors_are_pulled_back_through_the_weights(dtype, shape):
    e, w = arrays(shape, (U, V))
    expected = REFERENCE.pull_back(e, w)
    np.testing.assert_allclose(expected, e @ w.T)
    te, tw = tensors(dtype, e, w)
    same(TORCH.pull_back(te, tw), expected, dtype)


def test_products_with_the_factors_and_with_their_adjoint_are_those_of_each_instance(dtype):
    m, t, y, q = arrays((B, C, V), (B, V), (B, C), (B, C))
    expected = q.copy()
    REFERENCE.add_outputs(m, t, expected)
    np.testing.assert_allclose(expected - q, [m[i] @ t[i] for i in range(B)])
    r = REFERENCE.units(m, y)
    np.testing.assert_allclose(r, [m[i].T @ y[i] for i in range(B)])
    tm, tt, ty, tq = tensors(dtype, m, t, y, q)
    TORCH.add_outputs(tm, tt, tq)
    same(tq, expected, dtype)
    same(TORCH.units(tm, ty), r, dtype)


@pytest.mark.parametrize("biased", [True, False])
def test_gradients_are_added_to_what_is_there(dtype, biased):
    z, r, w, b = arrays((B, U), (B, V), (U, V), (V,))
    tz, tr, tw, tb = tensors(dtype, z, r, w, b)
    before = w.copy(), b.copy()
    REFERENCE.add_gradient(z, r, w, b if biased else None)
    np.testing.assert_allclose(w - before[0], z.T @ r)
    np.testing.assert_allclose(b - before[1], biased * r.sum(0))
    TORCH.add_gradient(tz, tr, tw, tb if biased else None)
    same(tw, w, dtype)
    same(tb, b, dtype)


def test_gradients_are_written_into_views_of_a_flat_vector():
    flat = torch.zeros(1 + U * V, dtype=torch.float64)
    z, r = tensors("float64", *arrays((B, U), (B, V)))
    TORCH.add_gradient(z, r, flat[1:].view(U, V), None)
    assert torch.equal(flat[1:].view(U, V), z.T @ r)


def test_nothing_is_recorded_for_autograd():
    w = torch.ones(U, V, requires_grad=True)
    assert not TORCH.affine(torch.ones(B, U), w, None).requires_grad
    assert not TORCH.pull_back(torch.ones(B, V), w).requires_grad
