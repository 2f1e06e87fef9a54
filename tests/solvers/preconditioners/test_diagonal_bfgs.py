"""The diagonal of BFGS from pairs: its formula, when a pair is refused, and its bounds."""

from __future__ import annotations

import pytest
import torch

from hpcopt.solvers.preconditioners.diagonal_bfgs import SPREAD, DiagonalBFGS, ReleasedDiagonalBFGS
from hpcopt.solvers.solver import State
from tests.support.objectives import QuadraticObjective

SIZE = 12


def pairs(count: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Steps s and changes y = A s of a gradient, with a symmetric positive definite A."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    matrix = root @ root.T / SIZE + torch.eye(SIZE, dtype=torch.float64)
    steps = torch.randn(count, SIZE, generator=generator, dtype=torch.float64)
    return [(s, matrix @ s) for s in steps]


def dense(h: torch.Tensor, s: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The diagonal of the BFGS update of diag(h)."""
    b = torch.diag(h)
    return (b - torch.outer(b @ s, b @ s) / (s @ b @ s) + torch.outer(y, y) / (y @ s)).diagonal()


def start(preconditioner: DiagonalBFGS | ReleasedDiagonalBFGS) -> tuple[QuadraticObjective, State]:
    objective = QuadraticObjective(SIZE)
    return objective, preconditioner.init(objective, objective.initial_vector())


def test_the_released_update_is_the_diagonal_of_the_dense_one() -> None:
    preconditioner = ReleasedDiagonalBFGS()
    objective, state = start(preconditioner)
    for s, y in pairs(20):
        expected = dense(state["hessian"], s, y)
        preconditioner.observe(objective, state, s, y)
        torch.testing.assert_close(state["hessian"], expected, rtol=1e-6, atol=1e-6)
        assert bool((state["hessian"] > 0).all())
    r = torch.ones(SIZE, dtype=torch.float64)
    torch.testing.assert_close(preconditioner.apply(state, r), 1 / (state["hessian"] + 1e-8))


def test_the_released_update_has_epsilon_in_its_numerators() -> None:
    preconditioner = ReleasedDiagonalBFGS()
    objective, state = start(preconditioner)
    s = torch.zeros(SIZE, dtype=torch.float64)
    s[0] = 1e-3
    preconditioner.observe(objective, state, s, s)  # y^T s = s^T h s = 1e-6
    expected = torch.ones(SIZE, dtype=torch.float64)  # what both terms add cancels where y = h s
    torch.testing.assert_close(state["hessian"], expected)
    preconditioner.observe(objective, state, s, 0.5 * s)
    half, whole = 5e-7 + 1e-8, 1e-6 + 1e-8
    torch.testing.assert_close(state["hessian"][1:], expected[1:] - 1e-8 / whole + 1e-8 / half)
    assert state["hessian"][0] == pytest.approx(1 - (1e-6 + 1e-8) / whole + (2.5e-7 + 1e-8) / half)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1e-10])
def test_a_pair_of_too_little_curvature_changes_nothing(scale: float) -> None:
    for preconditioner in (ReleasedDiagonalBFGS(), DiagonalBFGS()):
        objective, state = start(preconditioner)
        (s, y), (s2, y2) = pairs(2)
        preconditioner.observe(objective, state, s, y)
        before = state["hessian"].clone()
        orthogonal = y2 - (s2 @ y2) / (s2 @ s2) * s2
        preconditioner.observe(objective, state, s2, orthogonal + scale * s2)
        assert torch.equal(state["hessian"], before)


def test_a_pair_that_is_not_finite_changes_nothing() -> None:
    preconditioner = DiagonalBFGS()
    objective, state = start(preconditioner)
    (s, y) = pairs(1)[0]
    preconditioner.observe(objective, state, s, torch.where(y == y[3], torch.inf, y))
    assert torch.equal(state["hessian"], torch.ones(SIZE, dtype=torch.float64))
    assert state["hessian_pairs"] == 0


def test_the_robust_form_averages_the_dense_update_and_the_first_pair_sets_its_size() -> None:
    preconditioner = DiagonalBFGS()
    objective, state = start(preconditioner)
    h = None
    for s, y in pairs(8):
        h = torch.full_like(s, float(y @ y / (y @ s))) if h is None else h
        h = 0.9 * h + 0.1 * dense(h, s, y)
        preconditioner.observe(objective, state, s, y)
        torch.testing.assert_close(state["hessian"], h, rtol=1e-10, atol=0)
    assert state["hessian_pairs"] == 8


def test_the_robust_form_stays_within_a_factor_of_its_mean() -> None:
    preconditioner = DiagonalBFGS()
    objective, state = start(preconditioner)
    curvatures = torch.logspace(-8, 8, SIZE, dtype=torch.float64)
    for number in range(60):
        s = torch.zeros(SIZE, dtype=torch.float64)
        s[number % SIZE] = 1.0
        preconditioner.observe(objective, state, s, curvatures * s)
        h = state["hessian"]
        assert bool((h > 0).all())
        assert float(h.max() / h.min()) <= SPREAD**2 * (1 + 1e-12)


def test_a_restart_forgets() -> None:
    for preconditioner in (ReleasedDiagonalBFGS(), DiagonalBFGS()):
        objective, state = start(preconditioner)
        preconditioner.observe(objective, state, *pairs(1)[0])
        preconditioner.restart(objective, state)
        assert torch.equal(state["hessian"], torch.ones(SIZE, dtype=torch.float64))
