"""The strong Wolfe line search on functions of one variable."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcopt.linalg.line_search import Point, StrongWolfe, cubic_minimiser

FUNCTIONS = {
    "quadratic": (lambda t: (t - 1) ** 2, lambda t: 2 * (t - 1)),
    "quartic": (lambda t: (t - 3) ** 4, lambda t: 4 * (t - 3) ** 3),
    # More and Thuente 1994, "Line search algorithms with guaranteed sufficient decrease", eqs. 5.1 and 5.2
    "more-thuente 1": (lambda t: -t / (t * t + 2), lambda t: (t * t - 2) / (t * t + 2) ** 2),
    "more-thuente 2": (
        lambda t: (t + 0.004) ** 5 - 2 * (t + 0.004) ** 4,
        lambda t: 5 * (t + 0.004) ** 4 - 8 * (t + 0.004) ** 3,
    ),
}


def search(value, slope, first, **options):
    start = Point(0.0, value(0.0), slope(0.0), None)
    return StrongWolfe(lambda t: Point(t, value(t), slope(t), t), start, **options).run(first)


@pytest.mark.parametrize("first", [1e-3, 0.1, 1.0, 10.0, 1e3])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("curvature", [0.9, 0.1])
def test_both_wolfe_conditions_hold_at_the_end(name, first, curvature):
    value, slope = FUNCTIONS[name]
    curvature = 0.9 if name == "more-thuente 2" else curvature  # a tenth of its slope is below the rounding of it
    end = search(value, slope, first, curvature=curvature, evaluations=40)
    assert end.finite
    assert end.point.payload == end.point.step > 0
    assert value(end.point.step) <= value(0.0) + 1e-4 * end.point.step * slope(0.0)
    assert abs(slope(end.point.step)) <= curvature * abs(slope(0.0))


def test_a_good_first_step_costs_one_evaluation():
    value, slope = FUNCTIONS["quadratic"]
    assert search(value, slope, 1.0).evaluations == 1


@given(first=st.floats(1e-6, 1e6), most=st.integers(1, 12))
@settings(max_examples=100)
def test_the_evaluations_are_capped_and_the_end_is_never_above_the_start(first, most):
    value, slope = (lambda t: math.cos(t) + 0.01 * t * t - 0.3 * t), (lambda t: -math.sin(t) + 0.02 * t - 0.3)
    end = search(value, slope, first, evaluations=most)
    assert end.evaluations <= most
    assert end.point is None or end.point.value < value(0.0)


def test_a_function_that_only_rises_gives_no_point():
    end = search(lambda t: t, lambda t: -1.0, 1.0, evaluations=8)
    assert end.point is None
    assert end.evaluations == 8


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_trial_that_is_not_finite_counts_as_too_long(bad):
    value, slope = FUNCTIONS["quadratic"]
    end = search(lambda t: value(t) if t < 0.9 else bad, slope, 1.0)
    assert not end.finite
    assert 0 < end.point.step < 0.9


def test_an_unbounded_function_ends_at_the_cap_or_the_longest_step():
    end = search(lambda t: -t, lambda t: -1.0, 1.0, evaluations=5)
    assert end.evaluations == 5
    assert end.point.value < 0


def test_the_cubic_of_a_cubic_is_exact():
    value, slope = (lambda t: t**3 - 3 * t), (lambda t: 3 * t * t - 3)
    points = [Point(t, value(t), slope(t), None) for t in (0.2, 3.0)]
    assert cubic_minimiser(*points) == pytest.approx(1.0)
    assert cubic_minimiser(*reversed(points)) == pytest.approx(1.0)


def test_the_cubic_without_a_minimiser_says_so():
    a = Point(0.0, 0.0, -1.0, None)
    assert math.isnan(cubic_minimiser(a, a))
    assert math.isnan(cubic_minimiser(a, Point(1.0, math.nan, 1.0, None)))
    assert math.isnan(cubic_minimiser(a, Point(1.0, -1.0, -1.0, None)))
