"""A solution as exact as the matrix, although conjugate gradients see it rounded."""

from __future__ import annotations

import math

import pytest
import torch

from hpcopt.linalg.conjugate_gradient import conjugate_gradients
from hpcopt.linalg.refinement import refined
from hpcopt.objective.vectors import inner

SIZE, DAMPING = 60, 0.01


def system(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """G = A^T A, the same with A rounded to bfloat16, and g."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(2 * SIZE, SIZE, generator=generator, dtype=torch.float64) / math.sqrt(2 * SIZE)
    g = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    coarse = a.bfloat16().to(dtype)
    return a.to(dtype).T @ a.to(dtype), coarse.T @ coarse, g.to(dtype)


def solution(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    matrix, _, g = system(torch.float64)
    return torch.linalg.solve(matrix + DAMPING * torch.eye(SIZE, dtype=torch.float64), -g).to(dtype)


def error(direction: torch.Tensor) -> float:
    return float((direction.double() - solution()).norm() / solution().norm())


@pytest.mark.parametrize(("dtype", "reached"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_the_error_is_that_of_the_tolerance_and_not_of_the_rounded_matrix(dtype: torch.dtype, reached: float) -> None:
    matrix, coarse, g = system(dtype)
    options = {"tolerance": 1e-11 if dtype == torch.float64 else 1e-5, "most": 500}
    without = conjugate_gradients(coarse.mv, g, DAMPING, inner, **options)
    found = refined(coarse.mv, matrix.mv, g, DAMPING, inner, **options)
    assert without.converged
    assert error(without.direction) > 1e-3
    assert found.converged
    assert error(found.direction) < reached


def test_exact_products_are_few_and_it_converges_by_them() -> None:
    matrix, coarse, g = system(torch.float64)
    kept, calls = g.clone(), [0]

    def exact(v: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return matrix @ v

    found = refined(coarse.mv, exact, g, DAMPING, inner, tolerance=1e-6, most=500)
    assert 2 <= calls[0] <= 5
    assert calls[0] < found.iterations
    assert found.converged
    assert float((g + matrix @ found.direction + DAMPING * found.direction).norm()) <= 1.001e-6 * float(g.norm())
    assert torch.equal(g, kept)


def test_where_the_first_round_is_good_enough_there_is_no_other() -> None:
    matrix, coarse, g = system(torch.float64)
    plain = conjugate_gradients(coarse.mv, g, DAMPING, inner, tolerance=0.1, most=500)
    found = refined(coarse.mv, matrix.mv, g, DAMPING, inner, tolerance=0.1, most=500)
    assert found.iterations == plain.iterations
    torch.testing.assert_close(found.direction, plain.direction, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("most", [1, 4, 100])
def test_a_matrix_far_from_the_right_one_still_leads_downhill(scale: float, most: int) -> None:
    matrix, _, g = system(torch.float64)
    wrong = torch.diag(torch.linspace(0.1, scale, SIZE, dtype=torch.float64))
    found = refined(wrong.mv, matrix.mv, g, DAMPING, inner, tolerance=1e-9, most=most)
    assert 1 <= found.iterations <= most
    d = found.direction
    assert float(g @ d + 0.5 * d @ (matrix @ d + DAMPING * d)) < 0
    if most == 1:  # the best step along the one direction there is
        assert float(d @ (g + matrix @ d + DAMPING * d)) == pytest.approx(0.0, abs=1e-9)


def test_a_round_that_leaves_more_than_half_of_the_residual_is_the_last() -> None:
    matrix, _, g = system(torch.float64)
    calls = [0]

    def exact(v: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return matrix @ v

    wrong = torch.diag(torch.linspace(0.1, 20.0, SIZE, dtype=torch.float64))
    found = refined(wrong.mv, exact, g, DAMPING, inner, tolerance=1e-9, most=1000)
    left = g + matrix @ found.direction + DAMPING * found.direction
    assert calls == [1]
    assert not found.converged
    assert left.norm() > 0.5 * g.norm()


@pytest.mark.parametrize("most", [5, 20, 30])
def test_iterations_of_all_rounds_together_are_no_more_than_were_asked_for(most: int) -> None:
    matrix, coarse, g = system(torch.float64)
    found = refined(coarse.mv, matrix.mv, g, DAMPING, inner, tolerance=1e-11, most=most)
    assert found.iterations == most
    assert not found.converged


@pytest.mark.parametrize("broken", ["rounded", "exact"])
def test_what_is_not_finite_leaves_the_rounds_before(broken: str) -> None:
    matrix, coarse, g = system(torch.float64)
    calls = {"rounded": 0, "exact": 0}

    def product(which: str, m: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        calls[which] += 1
        late = calls["exact"] >= (1 if which == "rounded" else 2)
        return m @ v * (math.nan if late and which == broken else 1.0)

    def rounded(v: torch.Tensor) -> torch.Tensor:
        return product("rounded", coarse, v)

    def exact(v: torch.Tensor) -> torch.Tensor:
        return product("exact", matrix, v)

    found = refined(rounded, exact, g, DAMPING, inner, tolerance=1e-9, most=500)
    assert not found.finite
    assert not found.converged
    assert bool(found.direction.isfinite().all())
    assert float(g @ found.direction) < 0


def test_nothing_to_solve_is_solved() -> None:
    matrix, coarse, g = system(torch.float64)
    found = refined(coarse.mv, matrix.mv, torch.zeros_like(g), DAMPING, inner, tolerance=1e-3, most=5)
    assert found.converged
    assert found.iterations == 0
