"""The strong Wolfe line search on functions of one variable."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcopt.linalg.line_search import LONGEST, Point, StrongWolfe, cubic_minimiser
from tests.support.searches import FUNCTIONS, Recorded


def search(value, slope, first, **options):
    start = Point(0.0, value(0.0), slope(0.0), None)
    return StrongWolfe(lambda t: Point(t, value(t), slope(t), t), start, **options).run(first)


def steps(value, slope, first, **options):
    """All trials of a search."""
    recorded = Recorded(value)
    search(recorded, slope, first, **options)
    return recorded.tried[1:]  # behind the value at the start


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


def test_a_step_on_a_line_is_doubled_until_the_trials_are_spent_or_it_is_the_longest():
    assert steps(lambda t: -t, lambda t: -1.0, 1.0, evaluations=5) == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert search(lambda t: -t, lambda t: -1.0, 1.0, evaluations=5).point.step == 16
    assert steps(lambda t: -t, lambda t: -1.0, 3e19) == [3e19, 6e19, LONGEST]


def test_a_step_grows_to_the_minimiser_of_the_cubic_but_twofold_at_least_and_tenfold_at_most():
    value, slope = (lambda t: (t - 500) ** 2), (lambda t: 2 * (t - 500))
    assert steps(value, slope, 1.0, curvature=0.1) == pytest.approx([1.0, 10.0, 100.0, 500.0])
    value, slope = (lambda t: (t - 1.5) ** 2), (lambda t: 2 * (t - 1.5))
    assert steps(value, slope, 1.0, curvature=0.1) == pytest.approx([1.0, 2.0, 1.5])


def test_within_a_bracket_the_minimiser_of_the_cubic_is_tried_away_from_its_ends():
    value, slope = (lambda t: (t - 3) ** 2), (lambda t: 2 * (t - 3))
    assert steps(value, slope, 10.0, curvature=0.1) == pytest.approx([10.0, 3.0])
    assert steps(value, slope, 1000.0, curvature=0.1)[:2] == pytest.approx([1000.0, 100.0])


def test_a_trial_that_is_not_finite_is_cut_to_a_tenth():
    assert steps(lambda t: -t if t < 2 else math.inf, lambda t: -1.0, 30.0)[:3] == pytest.approx([30.0, 3.0, 0.3])


@pytest.mark.parametrize("first", [1e-3, 0.1, 10.0, 1e3])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_trials_do_not_depend_on_the_scale_of_the_values(name, first):
    value, slope = FUNCTIONS[name]
    for factor in (2.0**-20, 2.0**20):  # exact in binary
        scaled = steps(lambda t, c=factor: c * value(t), lambda t, c=factor: c * slope(t), first)
        assert scaled == steps(value, slope, first)


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
