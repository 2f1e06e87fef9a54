"""Halving the step until the loss falls enough."""

from __future__ import annotations

import math

import pytest

from hpcopt.linalg.backtracking import backtrack


def test_a_full_step_that_falls_enough_is_the_first_and_only_trial() -> None:
    found = backtrack(lambda step: (step - 1) ** 2, 1.0, -2.0, 1e-4, 10)
    assert (found.step, found.value, found.evaluations, found.finite) == (1.0, 0.0, 1, True)


def test_the_longest_of_the_halved_steps_that_falls_enough_is_taken() -> None:
    found = backtrack(lambda step: (step - 0.1) ** 2, 0.01, -0.2, 1e-4, 10)
    assert (found.step, found.evaluations) == (0.125, 4)


def test_what_falls_less_than_the_slope_promises_is_not_enough() -> None:
    assert backtrack(lambda step: 1 - 0.18 * step, 1.0, -4.0, 0.05, 10).step == 0
    assert backtrack(lambda step: 1 - 0.22 * step, 1.0, -4.0, 0.05, 10).step == 1


def test_the_search_has_an_end() -> None:
    found = backtrack(lambda step: 1 + step, 1.0, -1.0, 1e-4, 7)
    assert (found.step, found.value, found.evaluations, found.finite) == (0.0, 1.0, 7, True)


def test_an_equal_loss_is_no_decrease_however_small_the_promise() -> None:
    assert backtrack(lambda _: 1.0, 1.0, -1e-30, 1e-4, 7).step == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_trial_that_is_not_finite_counts_as_too_long_and_is_told(value: float) -> None:
    found = backtrack(lambda step: value if step > 0.3 else 0.5, 1.0, -1.0, 1e-4, 7)
    assert (found.step, found.finite) == (0.25, False)
