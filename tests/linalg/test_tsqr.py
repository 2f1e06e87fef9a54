"""Triangles of tall matrices: what they keep of least squares, however the rows are cut."""

from __future__ import annotations

from functools import reduce

import pytest
import torch

from hpcopt.linalg.tsqr import Triangle, combine, leaf, pack, packed_size, unpack

ROWS, WIDTH, OUTPUTS = 23, 5, 3


def problem(rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    make = {"generator": generator, "dtype": torch.float64}
    return torch.randn(rows, WIDTH, **make), torch.randn(rows, OUTPUTS, **make)


def assert_close(found: Triangle, expected: Triangle) -> None:
    torch.testing.assert_close(found.factor, expected.factor, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found.right, expected.right, rtol=1e-12, atol=1e-13)
    assert found.tail == pytest.approx(expected.tail, rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("rows", [0, 1, 4, 5, 6, ROWS])
def test_a_triangle_knows_gram_right_hand_side_and_every_residual(rows: int) -> None:
    z, b = problem(rows)
    found = leaf(z, b)
    torch.testing.assert_close(found.factor.T @ found.factor, z.T @ z, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found.factor.T @ found.right, z.T @ b, rtol=1e-13, atol=1e-13)
    x = problem(ROWS)[0][:WIDTH, :OUTPUTS].contiguous()
    residual = (found.right - found.factor @ x).square().sum() + found.tail
    torch.testing.assert_close(residual, (b - z @ x).square().sum(), rtol=1e-12, atol=1e-12)


def test_a_triangle_is_upper_with_a_diagonal_that_is_not_negative() -> None:
    factor = leaf(*problem()).factor
    assert torch.equal(factor, factor.triu())
    assert bool((factor.diagonal() >= 0).all())


@pytest.mark.parametrize("cuts", [[23], [1, 22], [0, 10, 13], [5, 6, 4, 8], [3] * 7 + [2]])
def test_any_cut_of_the_rows_and_any_order_gives_the_same_triangle(cuts: list[int]) -> None:
    z, b = problem()
    leaves = [leaf(*part) for part in zip(z.split(cuts), b.split(cuts), strict=True)]
    assert_close(reduce(combine, leaves), leaf(z, b))
    assert_close(reduce(combine, reversed(leaves)), leaf(z, b))


def test_a_packed_triangle_is_as_long_as_said_and_comes_back() -> None:
    state = leaf(*problem())
    packed = pack(state)
    assert packed.shape == (packed_size(WIDTH, OUTPUTS),)
    found = unpack(packed, WIDTH, OUTPUTS)
    assert torch.equal(found.factor, state.factor)
    assert torch.equal(found.right, state.right)
    assert found.tail == state.tail
