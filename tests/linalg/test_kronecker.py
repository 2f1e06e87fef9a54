"""Kronecker products of small factors against the dense matrices they stand for."""

from __future__ import annotations

import math

import pytest
import torch

from hpcopt.linalg.kronecker import balance, damped_inverses, multiply, shifted_inverse


def moments(order: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A second moment of some rows, positive semidefinite of rank 3."""
    rows = torch.randn(3, order, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return rows.T @ rows / 3


def test_the_damping_of_the_product_is_the_square_of_r_on_top_of_mixed_terms() -> None:
    a, g, damping = moments(4, 0), moments(3, 1), 0.04
    found = damped_inverses(a, g, damping)
    assert found is not None
    pi = math.sqrt(float(a.trace()) / 4 / (float(g.trace()) / 3))
    first, second = (torch.eye(order, dtype=torch.float64) for order in (4, 3))
    damped = torch.kron(a, g) + damping * torch.eye(12, dtype=torch.float64)
    damped += 0.2 / pi * torch.kron(a, second) + 0.2 * pi * torch.kron(first, g)
    torch.testing.assert_close(torch.kron(*found) @ damped, torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-10)


def test_the_balance_makes_both_factors_equally_damped_for_their_scale() -> None:
    a, g = moments(4, 0), moments(3, 1)
    assert balance(100 * a, g) == pytest.approx(10 * balance(a, g))
    assert balance(a, torch.zeros(3, 3)) == balance(torch.zeros(4, 4), g) == 1.0
    assert balance(a, torch.full((3, 3), torch.nan)) == 1.0


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_what_has_no_inverse_has_none(bad: float) -> None:
    matrix = torch.diag(torch.tensor([1.0, bad]))
    assert shifted_inverse(matrix, 0.5) is None
    assert damped_inverses(matrix, torch.eye(2), 1e-6) is None
    assert damped_inverses(torch.eye(2), matrix, 1e-6) is None


def test_what_is_indefinite_to_float32_is_inverted_in_float64() -> None:
    matrix, shift = torch.ones(2, 2), 2.0**-30
    found = shifted_inverse(matrix, shift)
    assert found is not None
    assert found.dtype == torch.float32
    expected = torch.linalg.inv(matrix.double() + shift * torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


def test_inverses_are_symmetric_to_the_last_bit() -> None:
    found = shifted_inverse(moments(30, 2, torch.float32), 1e-3)
    assert found is not None
    assert torch.equal(found, found.T)


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_product_is_that_of_the_kronecker_product(has_bias: bool) -> None:
    a, g = moments(5 + has_bias, 3), moments(3, 4)
    v = torch.randn(3, 5 + has_bias, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    expected = (torch.kron(a, g) @ v.T.reshape(-1)).view(5 + has_bias, 3).T
    weight, bias = v[:, :5].contiguous(), v[:, 5].contiguous() if has_bias else None
    result = torch.full((18,), torch.nan, dtype=torch.float64)
    into = (result[:15].view(3, 5), result[15:] if has_bias else None)
    multiply(a, g, weight, bias, into)
    torch.testing.assert_close(into[0], expected[:, :5])
    if has_bias:
        torch.testing.assert_close(into[1], expected[:, 5])
