"""The diagonal of the Gauss-Newton matrix by probes."""

from __future__ import annotations

import torch

from hpcopt.solvers.preconditioners.gauss_newton_diagonal import FIRST, KEPT, PERIOD, SPREAD, GaussNewtonDiagonal
from hpcopt.solvers.solver import State
from tests.support.objectives import FULL, QuadraticObjective, SerialObjective, digits


def probed(objective: SerialObjective, steps: int) -> State:
    """The state after the calls of so many steps from one point."""
    preconditioner = GaussNewtonDiagonal()
    state: State = {"parameters": objective.initial_vector()}
    state |= preconditioner.init(objective, objective.initial_vector())
    for _ in range(steps):
        preconditioner.end(objective, state, preconditioner.begin(objective, state, FULL), 0.0)
    return state


def test_one_probe_gives_a_diagonal_matrix_exactly() -> None:
    objective = QuadraticObjective(8, 50.0)
    state = probed(objective, 1)
    torch.testing.assert_close(state["diagonal"], objective.curvatures)
    r = torch.ones(8, dtype=torch.float64)
    torch.testing.assert_close(GaussNewtonDiagonal().apply(state, r), 1 / objective.curvatures)


def test_before_the_first_probe_it_is_the_identity() -> None:
    objective = QuadraticObjective(8)
    state = {"parameters": objective.initial_vector()}
    state |= GaussNewtonDiagonal().init(objective, objective.initial_vector())
    assert torch.equal(GaussNewtonDiagonal().apply(state, objective.start), objective.start)


def test_the_average_is_a_mean_at_first_and_then_exponential() -> None:
    objective = digits(torch.float64)
    linear = objective.linearize(objective.initial_vector(), FULL)
    estimates = [v * linear.gauss_newton(v) for v in map(objective.signs, (0, 1, 2, 3, 4, 5, 10, 15, 20, 25, 30, 35))]
    expected = estimates[0]
    for number, estimate in enumerate(estimates[1:], 2):
        weight = max(1 - KEPT, 1 / number)
        expected = (1 - weight) * expected + weight * estimate
    state = probed(objective, 36)
    assert state["diagonal_probes"] == FIRST + 36 // PERIOD
    torch.testing.assert_close(state["diagonal"], expected)
    torch.testing.assert_close(torch.tensor(state["diagonal_mean"]).double(), expected.mean())


def test_it_comes_near_the_diagonal_and_is_positive() -> None:
    objective = digits(torch.float64)
    state = probed(objective, 200)
    probes = torch.stack([objective.signs(number) for number in range(2)])
    assert set(probes.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(probes[0] @ probes[1])) < 6 * objective.size**0.5
    p = GaussNewtonDiagonal().apply(state, torch.ones_like(objective.start))
    assert bool((p > 0).all())
    assert float(p.max()) <= SPREAD / state["diagonal_mean"] * (1 + 1e-12)


def test_damping_is_added_before_the_inverse() -> None:
    objective = QuadraticObjective(8, 50.0)
    state = probed(objective, 1)
    GaussNewtonDiagonal().end(objective, state, None, 2.0)
    r = torch.ones(8, dtype=torch.float64)
    torch.testing.assert_close(GaussNewtonDiagonal().apply(state, r), 1 / (objective.curvatures + 2.0))


def test_a_probe_that_is_not_finite_is_left_out() -> None:
    objective = QuadraticObjective(8, 50.0)
    objective.curvatures[3] = torch.inf
    assert probed(objective, 1)["diagonal_probes"] == 0
