"""The two-loop recursion in coefficients against the dense BFGS recursion."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcopt.linalg.lbfgs import lbfgs_accepts, lbfgs_scale, two_loop
from hpcopt.linalg.pairs import PairMemory


def inner(x, y):
    return x.double() @ y.double().T


def convex_pairs(count, size, seed):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    hessian = root @ root.T / size + 0.1 * torch.eye(size, dtype=torch.float64)
    return [(s, hessian @ s) for s in torch.randn(count, size, generator=generator, dtype=torch.float64)]


def dense_inverse(pairs, size):
    identity = torch.eye(size, dtype=torch.float64)
    scale = (pairs[-1][0] @ pairs[-1][1]) / (pairs[-1][1] @ pairs[-1][1]) if pairs else 1.0
    matrix = scale * identity
    for s, y in pairs:
        rho = 1 / (s @ y)
        left = identity - rho * torch.outer(s, y)
        matrix = left @ matrix @ left.T + rho * torch.outer(s, s)
    return matrix


@given(seed=st.integers(0, 10**6), count=st.integers(0, 8))
@settings(max_examples=25)
def test_the_direction_equals_the_dense_recursion_over_the_last_pairs(seed, count):
    pairs = convex_pairs(count, 9, seed)
    gradient = torch.randn(9, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    memory = PairMemory.empty(gradient, 5)
    for s, y in pairs:
        memory.offer(s, y, inner)
        memory.keep()
    coefficients, factor = two_loop(memory, memory.products(gradient, inner))
    direction = memory.combine(coefficients) + factor * gradient
    expected = -dense_inverse(pairs[-5:], 9) @ gradient
    torch.testing.assert_close(direction, expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max()))


def test_pairs_without_positive_curvature_are_refused():
    memory = PairMemory.empty(torch.zeros(2, dtype=torch.float64), 2)
    for y, accepted in (([1.0, 0.0], True), ([0.0, 1.0], False), ([-1.0, 0.0], False), ([1e-10, 1.0], False)):
        memory.offer(torch.tensor([1.0, 0.0]), torch.tensor(y), inner)
        assert lbfgs_accepts(memory) is accepted


def test_the_scale_is_one_without_pairs():
    assert lbfgs_scale(PairMemory.empty(torch.zeros(2), 2)) == 1.0
