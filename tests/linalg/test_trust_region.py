"""The trust-region subproblem against its optimality conditions and a dense eigenvalue solver."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from hpcopt.linalg.quasi_newton import Candidate
from hpcopt.linalg.trust_region import Subproblem, solve_subproblem


def problem_of(values, gradient, gamma, rest, radius):
    order = np.argsort(values)
    values, gradient = np.asarray(values, float)[order], np.asarray(gradient, float)[order]
    return Subproblem(torch.tensor(values), torch.tensor(gradient), gamma, rest, radius)


def full(problem, step):
    """The problem as diagonal matrix, gradient and solution with one extra dimension for what is orthogonal."""
    matrix = np.append(problem.values.numpy(), problem.gamma)
    gradient = np.append(problem.gradient.numpy(), problem.rest)
    return matrix, gradient, np.append(step.components.numpy(), step.factor * problem.rest)


def predicted(problem, step):
    """Decrease of the model, as the trust-region method takes it from slope and length of the step."""
    _, gradient, s = full(problem, step)
    return Candidate(torch.zeros(0), step.factor, step.sigma).predicted(gradient @ s, np.linalg.norm(s), 1.0)


def assert_optimal(problem, tolerance=1e-9, norm=None):
    """The conditions of More and Sorensen, which are necessary and sufficient for a global minimiser.

    ``norm``: the length of the step where it is known.
    """
    step = solve_subproblem(problem)
    matrix, gradient, s = full(problem, step)
    assert norm is None or np.linalg.norm(s) == pytest.approx(norm)
    size = np.linalg.norm(gradient) + 1e-300
    assert step.sigma >= 0
    assert np.linalg.norm(s) <= problem.radius * (1 + tolerance)
    rounding = 1e-14 * abs(matrix).max() * np.linalg.norm(s)
    assert np.linalg.norm((matrix + step.sigma) * s + gradient) <= tolerance * size + rounding
    assert step.sigma + matrix.min() >= -tolerance * max(1.0, abs(matrix).max())
    assert step.sigma * (problem.radius - np.linalg.norm(s)) <= tolerance * max(1.0, step.sigma) * problem.radius
    decrease = predicted(problem, step)
    assert decrease == pytest.approx(-(gradient @ s) - 0.5 * s @ (matrix * s), rel=1e-6, abs=1e-9 * size)
    assert decrease >= 0
    return step


def dense_value(problem):
    """Smallest model value by bisection of the secular equation in plain NumPy; not for the hard case."""
    matrix, gradient, _ = full(problem, solve_subproblem(problem))
    low = max(0.0, -matrix.min())

    def length(sigma):
        return np.linalg.norm(gradient / (matrix + sigma))

    if matrix.min() > 0 and length(0.0) <= problem.radius:
        sigma = 0.0
    else:
        high = low + np.linalg.norm(gradient) / problem.radius + 1.0
        sigma = brentq(lambda x: length(x) - problem.radius, low + 1e-14 * max(1, low), high, xtol=1e-300, rtol=1e-14)
    s = -gradient / (matrix + sigma)
    return gradient @ s + 0.5 * s @ (matrix * s)


def test_a_short_newton_step_is_taken_whole():
    step = assert_optimal(problem_of([1.0, 4.0], [1.0, 2.0], 2.0, 1.0, 10.0))
    assert step.sigma == 0
    assert step.iterations == 0


def test_a_long_newton_step_ends_on_the_boundary():
    step = assert_optimal(problem_of([1.0, 4.0], [1.0, 2.0], 2.0, 1.0, 0.1), norm=0.1)
    assert step.sigma > 0


def test_negative_curvature_leads_to_the_boundary():
    step = assert_optimal(problem_of([-3.0, 4.0], [1e-3, 2.0], 2.0, 1.0, 5.0), norm=5.0)
    assert step.sigma > 3


@pytest.mark.parametrize("first", [0.0, 1e-20, -1e-20])
def test_hard_case_goes_along_the_lowest_eigenvector_to_the_boundary(first):
    problem = problem_of([-3.0, 4.0], [first, 2.0], 2.0, 1.0, 5.0)
    step = assert_optimal(problem, norm=5.0)
    assert step.sigma == pytest.approx(3.0)
    assert abs(float(step.components[0])) > 4.9


@pytest.mark.parametrize("first", [1e-6, 1e-9, 1e-11])
def test_nearly_hard_case_keeps_its_digits(first):
    step = assert_optimal(problem_of([-3.0, 4.0], [first, 2.0], 2.0, 1.0, 5.0))
    assert float(step.components[0]) < -4.9


def test_hard_case_with_too_small_a_radius_is_an_easy_one():
    step = assert_optimal(problem_of([-3.0, 4.0], [0.0, 2.0], 2.0, 1.0, 0.01))
    assert step.sigma > 3


def test_a_singular_matrix_without_gradient_along_its_null_space_takes_the_pseudo_inverse():
    step = assert_optimal(problem_of([0.0, 4.0], [0.0, 2.0], 2.0, 1.0, 5.0))
    assert step.sigma == 0
    assert step.components.tolist() == [0.0, -0.5]


def test_without_a_basis_it_is_scaled_steepest_descent():
    step = assert_optimal(problem_of([], [], 2.0, 3.0, 10.0))
    assert step.factor == -0.5
    assert_optimal(problem_of([], [], 2.0, 3.0, 1.0), norm=1.0)


numbers = st.floats(-1e3, 1e3, allow_subnormal=False)


@given(
    pairs=st.lists(st.tuples(numbers, numbers), min_size=0, max_size=8),
    gamma=st.floats(1e-3, 1e3),
    rest=st.floats(1e-3, 1e3),
    radius=st.floats(1e-6, 1e6),
)
@settings(max_examples=300)
def test_random_problems_meet_the_optimality_conditions(pairs, gamma, rest, radius):
    problem = problem_of([p[0] for p in pairs], [p[1] for p in pairs], gamma, rest, radius)
    assert_optimal(problem, 1e-8)


@given(seed=st.integers(0, 10**6), radius=st.floats(1e-3, 1e2))
@settings(max_examples=100)
def test_random_problems_equal_the_dense_solution(seed, radius):
    generator = np.random.default_rng(seed)
    problem = problem_of(generator.normal(size=6), generator.normal(size=6), 0.5, 1.0, radius)
    step = solve_subproblem(problem)
    assert -predicted(problem, step) == pytest.approx(dense_value(problem), rel=1e-7)
    assert step.iterations <= 12


def test_the_predicted_decrease_has_no_cancellation_for_a_tiny_radius():
    problem = problem_of([-1.0, 1e6], [1.0, 1.0], 1.0, 1.0, 1e-12)
    assert predicted(problem, solve_subproblem(problem)) == pytest.approx(1e-12 * math.sqrt(3.0), rel=1e-4)
