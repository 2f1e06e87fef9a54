"""The line search of Hager and Zhang on functions of one variable."""

from __future__ import annotations

import math

import pytest

from hpcopt.linalg.hager_zhang import DELTA, EPSILON, SIGMA, HagerZhang, secant
from hpcopt.linalg.line_search import Point, Search
from tests.support.searches import FUNCTIONS, Function, Recorded


def search(value: Function, slope: Function, first: float, evaluations: int = 40) -> Search[float]:
    start = Point(0.0, value(0.0), slope(0.0), 0.0)
    return HagerZhang(lambda t: Point(t, value(t), slope(t), t), start, evaluations).run(first)


@pytest.mark.parametrize("first", [1e-3, 0.1, 1.0, 10.0, 1e3])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_wolfe_conditions_or_their_approximate_form_hold_at_the_end(name: str, first: float) -> None:
    value, slope = FUNCTIONS[name]
    end = search(value, slope, first)
    assert end.finite
    assert end.point is not None
    t, fall = end.point.step, slope(0.0)
    assert end.point.payload == t > 0
    assert slope(t) >= SIGMA * fall
    decreases = value(t) - value(0.0) <= DELTA * t * fall
    flat = value(t) <= value(0.0) + EPSILON * abs(value(0.0)) and slope(t) <= (2 * DELTA - 1) * fall
    assert decreases or flat


def steps(value: Function, slope: Function, first: float, evaluations: int = 40) -> list[float]:
    """All trials of a search."""
    recorded = Recorded(value)
    search(recorded, slope, first, evaluations)
    return recorded.tried[1:]  # behind the value at the start


@pytest.mark.parametrize("first", [1e-3, 0.1, 10.0, 1e3])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_trials_do_not_depend_on_the_scale_of_the_values(name: str, first: float) -> None:
    value, slope = FUNCTIONS[name]
    for factor in (2.0**-20, 2.0**20):  # exact in binary
        scaled = steps(lambda t, c=factor: c * value(t), lambda t, c=factor: c * slope(t), first)  # type: ignore[misc]
        assert scaled == steps(value, slope, first)


def test_a_bracket_that_secant_steps_hardly_shrink_is_halved() -> None:
    """The slope is -1 nearly everywhere, so that the first secant step is close to 0 and the second one outside."""
    tried = steps(lambda t: -t + 100.1 / 21 * (10 * t) ** 21, lambda t: -1 + 1001 * (10 * t) ** 20, 0.1)
    assert tried[:3] == pytest.approx([0.1, 0.1 / 1001, 0.05 * (1 + 1 / 1001)])


@pytest.mark.parametrize(("factor", "power"), [(10.0, 1 - math.log10(1.85)), (144.0, 1.5)])
def test_a_second_secant_step_is_taken_from_the_end_that_moved(factor: float, power: float) -> None:
    """The first one, at 1 / factor, is behind the minimiser where the slope is concave, and before it where convex."""
    tried = steps(lambda t: -t + factor / (power + 1) * t ** (power + 1), lambda t: -1 + factor * t**power, 1.0)
    first = 1 / factor
    end, ends = (1.0, factor - 1) if power < 1 else (0.0, -1.0)
    moved = -1 + factor * first**power
    assert tried[:3] == pytest.approx([1.0, first, (end * moved - first * ends) / (moved - ends)])


def test_a_bracket_whose_upper_end_is_too_high_begins_at_the_start() -> None:
    tried = steps(lambda t: -t if t < 4 else 10 - t, lambda t: -1.0, 1.0)
    assert tried[:3] == [1.0, 5.0, 2.5]


def test_a_step_that_is_too_long_is_cut_to_the_middle_of_the_bracket() -> None:
    tried = steps(lambda t: -t if t < 4 else math.inf, lambda t: -1.0, 1.0)
    assert tried[:5] == [1.0, 5.0, 3.0, 4.0, 3.5]


def test_the_secant_step_is_exact_on_a_quadratic() -> None:
    ends = [Point(t, (t - 2) ** 2, 2 * (t - 2), None) for t in (0.5, 3.0)]
    assert secant(*ends) == pytest.approx(2.0)
    assert math.isnan(secant(ends[0], ends[0]))


def test_a_good_first_step_costs_one_evaluation() -> None:
    assert search(*FUNCTIONS["quadratic"], 1.0).evaluations == 1


def test_it_ends_where_values_differ_by_rounding_only() -> None:
    """On 1 + (t - 1)^2 1e-18, constant to float64, the slope still tells where the minimum is."""
    end = search(lambda t: 1 + 1e-18 * (t - 1) ** 2, lambda t: 2e-18 * (t - 1), 64.0)
    assert end.point is not None
    assert SIGMA * -2e-18 <= end.point.slope <= 2e-18 * (1 - 2 * DELTA)


@pytest.mark.parametrize("most", [1, 2, 3, 7])
def test_the_evaluations_are_capped_and_the_end_is_never_above_the_start(most: int) -> None:
    value, slope = (lambda t: math.cos(t) + 0.01 * t * t - 0.3 * t), (lambda t: -math.sin(t) + 0.02 * t - 0.3)
    for first in (1e-6, 1e-3, 1.0, 7.0, 1e3, 1e6):
        end = search(value, slope, first, most)
        assert end.evaluations <= most
        assert end.point is None or end.point.value < value(0.0) + EPSILON


def test_a_function_that_only_rises_gives_no_point() -> None:
    end = search(lambda t: t, lambda t: -1.0, 1.0, 8)
    assert end.point is None
    assert end.evaluations == 8


def test_a_function_without_a_minimum_ends_at_the_cap() -> None:
    end = search(lambda t: -t, lambda t: -1.0, 1.0, 5)
    assert end.evaluations == 5
    assert end.point is not None
    assert end.point.step == 5.0**4


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("first", [1.0, 2.0, 100.0])
def test_a_trial_that_is_not_finite_counts_as_too_long(bad: float, first: float) -> None:
    value, slope = FUNCTIONS["quadratic"]
    end = search(lambda t: value(t) if t < 0.9 else bad, slope, first)
    assert not end.finite
    assert end.point is not None
    assert 0 < end.point.step < 0.9


def test_a_bracket_that_rounding_closes_ends_the_search() -> None:
    """A step of the slope at 1 that no trial satisfies: the bracket shrinks to two neighbouring numbers."""
    end = search(lambda t: -t if t < 1 else 10 + t, lambda t: -1.0 if t < 1 else 1.0, 3.0, 100_000)
    assert end.evaluations < 2_000
    assert end.point is not None
    assert end.point.step < 1
