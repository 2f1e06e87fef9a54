"""Conjugate gradients with merged inner products against dense solves and against the textbook's algorithm."""

from __future__ import annotations

import math

import pytest
import torch

from hpcopt.linalg.conjugate_gradient import conjugate_gradients
from hpcopt.objective.vectors import inner

SIZE = 40


def matrix(condition: float = 1e3, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A symmetric positive definite matrix with eigenvalues from 1 / ``condition`` to 1."""
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))
    values = torch.logspace(-math.log10(condition), 0, SIZE, dtype=torch.float64)
    return (q @ torch.diag(values) @ q.T).to(dtype)


def gradient(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def textbook(a: torch.Tensor, g: torch.Tensor, tolerance: float, most: int) -> tuple[torch.Tensor, int]:
    """Hestenes and Stiefel, with two inner products an iteration."""
    d, r = torch.zeros_like(g), -g
    v, count = r.clone(), 0
    while count < most:
        q, square = a @ v, r @ r
        alpha = square / (v @ q)
        d, r, count = d + alpha * v, r - alpha * q, count + 1
        if r.norm() <= tolerance * g.norm():
            break
        v = r + (r @ r) / square * v
    return d, count


class Counted:
    """Products with a matrix and inner products, counted."""

    def __init__(self, a: torch.Tensor) -> None:
        self.a, self.products, self.inners = a, 0, 0

    def product(self, v: torch.Tensor) -> torch.Tensor:
        self.products += 1
        return self.a @ v

    def inner(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.inners += 1
        return inner(x, y)


@pytest.mark.parametrize("damping", [0.0, 1e-2, 10.0])
def test_the_system_is_solved(damping: float) -> None:
    a, g = matrix(), gradient()
    found = conjugate_gradients(a.mv, g, damping, inner, tolerance=1e-12, most=200)
    expected = torch.linalg.solve(a + damping * torch.eye(SIZE, dtype=a.dtype), -g)
    torch.testing.assert_close(found.direction, expected, rtol=1e-9, atol=1e-9)
    assert found.converged
    assert found.finite


@pytest.mark.parametrize("tolerance", [0.5, 0.1, 1e-3, 1e-6])
@pytest.mark.parametrize("condition", [3.0, 1e2, 1e3])
def test_iterates_and_their_number_are_those_of_the_textbook(tolerance: float, condition: float) -> None:
    a, g = matrix(condition), gradient()
    expected, count = textbook(a, g, tolerance, 100)
    found = conjugate_gradients(a.mv, g, 0.0, inner, tolerance=tolerance, most=100)
    assert abs(found.iterations - count) <= count // 20
    if found.iterations == count:
        torch.testing.assert_close(found.direction, expected, rtol=1e-5, atol=1e-5 * float(expected.norm()))
    assert (a @ found.direction + g).norm() <= 1.001 * tolerance * g.norm()


@pytest.mark.parametrize("damping", [0.0, 1e-2, 10.0])
def test_a_preconditioned_system_is_solved_with_the_damping_in_its_metric(damping: float) -> None:
    a, p, g = matrix(), matrix(10.0), gradient()
    found = conjugate_gradients(a.mv, g, damping, inner, tolerance=1e-12, most=200, precondition=p.mv)
    expected = torch.linalg.solve(a + damping * torch.linalg.inv(p), -g)
    torch.testing.assert_close(found.direction, expected, rtol=1e-9, atol=1e-9)
    assert found.converged


@pytest.mark.parametrize("iterations", [1, 2, 7])
def test_preconditioned_iterates_are_those_of_the_transformed_system(iterations: int) -> None:
    a, g = matrix(), gradient()
    root = torch.linalg.cholesky(matrix(100.0))
    p, damping = root @ root.T, 0.3
    found = conjugate_gradients(a.mv, g, damping, inner, tolerance=0.0, most=iterations, precondition=p.mv)
    same = root.T @ a @ root + damping * torch.eye(SIZE, dtype=a.dtype)
    expected, _ = textbook(same, root.T @ g, 0.0, iterations)
    torch.testing.assert_close(found.direction, root @ expected, rtol=1e-9, atol=1e-9)


def test_the_inverse_as_preconditioner_needs_one_product() -> None:
    counted, g = Counted(matrix()), gradient()
    inverse = torch.linalg.inv(counted.a)
    found = conjugate_gradients(counted.product, g, 0.0, counted.inner, tolerance=1e-6, most=9, precondition=inverse.mv)
    assert (found.iterations, counted.products, found.converged) == (1, 1, True)


def test_an_iteration_is_one_product_and_one_call_of_inner() -> None:
    counted = Counted(matrix())
    found = conjugate_gradients(counted.product, gradient(), 0.1, counted.inner, tolerance=1e-3, most=100)
    assert found.converged
    assert counted.products == counted.inners == found.iterations


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_converges_when_the_residual_is_small_enough(dtype: torch.dtype) -> None:
    a, g = matrix(100.0, dtype), gradient(dtype)
    found = conjugate_gradients(a.mv, g, 0.01, inner, tolerance=1e-3, most=100)
    residual = -g - a @ found.direction - 0.01 * found.direction
    assert found.converged
    assert float(residual.norm()) <= (1e-3 + 1e3 * torch.finfo(dtype).eps) * float(g.norm())


@pytest.mark.parametrize("most", range(1, 12))
def test_every_iterate_is_a_direction_of_descent_and_solves_its_part_of_the_system(most: int) -> None:
    """On the Krylov space of d the residual vanishes, so d^T (G + lambda I) d = -g^T d."""
    a, g = matrix(), gradient()
    found = conjugate_gradients(a.mv, g, 0.1, inner, tolerance=0.0, most=most)
    assert found.iterations == most
    assert not found.converged
    assert float(g @ found.direction) < 0
    bend = found.direction @ (a @ found.direction) + 0.1 * found.direction @ found.direction
    assert float(bend) == pytest.approx(-float(g @ found.direction), rel=1e-10)


def test_it_ends_where_it_may_not_go_on() -> None:
    asked: list[int] = []

    def goes_on(iterations: int) -> bool:
        asked.append(iterations)
        return iterations < 4

    found = conjugate_gradients(matrix().mv, gradient(), 0.0, inner, tolerance=0.0, most=100, goes_on=goes_on)
    assert (found.iterations, asked) == (4, [1, 2, 3, 4])
    expected = conjugate_gradients(matrix().mv, gradient(), 0.0, inner, tolerance=0.0, most=4)
    assert torch.equal(found.direction, expected.direction)


def test_a_zero_gradient_has_a_zero_direction() -> None:
    found = conjugate_gradients(matrix().mv, torch.zeros(SIZE, dtype=torch.float64), 0.0, inner, tolerance=0.1, most=9)
    assert found.converged
    assert not found.direction.any()


def test_a_system_with_three_eigenvalues_is_solved_in_three_iterations_to_rounding() -> None:
    """The predicted residual is all rounding there, and must be found out."""
    a = torch.diag(torch.tensor([1.0, 2.0, 5.0] * 13 + [1.0], dtype=torch.float64))
    found = conjugate_gradients(a.mv, gradient(), 0.0, inner, tolerance=1e-10, most=50)
    assert found.converged
    assert found.iterations == 3
    torch.testing.assert_close(a @ found.direction, -gradient(), rtol=1e-9, atol=1e-9)


def test_negative_curvature_at_once_gives_steepest_descent() -> None:
    found = conjugate_gradients(lambda v: -v, gradient(), 0.0, inner, tolerance=0.1, most=9)
    assert torch.equal(found.direction, -gradient())
    assert (found.iterations, found.converged, found.finite) == (1, False, True)


def test_negative_curvature_later_keeps_the_direction_so_far() -> None:
    a = torch.diag(torch.tensor([10.0, 1.0, -0.01], dtype=torch.float64))
    g = torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64)
    found = conjugate_gradients(a.mv, g, 0.0, inner, tolerance=1e-8, most=9)
    assert 1 < found.iterations <= 3
    assert not found.converged
    before = conjugate_gradients(a.mv, g, 0.0, inner, tolerance=1e-8, most=found.iterations - 1)
    assert torch.equal(found.direction, before.direction)


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_product_that_is_not_finite_never_reaches_the_direction(at: int, value: float) -> None:
    counted = Counted(matrix())

    def product(v: torch.Tensor) -> torch.Tensor:
        found = counted.product(v)
        if counted.products == at:
            found[0] = value
        return found

    found = conjugate_gradients(product, gradient(), 0.0, inner, tolerance=1e-8, most=50)
    assert not found.finite
    assert found.iterations == at
    assert bool(found.direction.isfinite().all())


def test_the_gradient_is_left_as_it_is() -> None:
    g = gradient()
    conjugate_gradients(matrix().mv, g, 1.0, inner, tolerance=0.1, most=9)
    assert torch.equal(g, gradient())
