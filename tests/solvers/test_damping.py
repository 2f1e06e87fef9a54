"""The rule of Levenberg-Marquardt damping, as a table."""

from __future__ import annotations

import math

import pytest

from hpcopt.solvers.damping import DAMPING_MAX, DAMPING_MIN, after_failure, after_step


@pytest.mark.parametrize(
    ("ratio", "factor"),
    [(2.0, 2 / 3), (0.76, 2 / 3), (0.75, 1.0), (0.5, 1.0), (0.25, 1.0), (0.24, 1.5), (0.0, 1.5), (-3.0, 1.5)],
)
@pytest.mark.parametrize("promised", [1e-12, 1.0, 1e6])
def test_lambda_follows_the_ratio_of_gained_to_promised(ratio: float, factor: float, promised: float) -> None:
    assert after_step(0.6, ratio * promised, promised, 1.5, 2 / 3) == pytest.approx(0.6 * factor)


def test_a_gain_that_is_not_a_number_is_a_bad_one() -> None:
    assert after_step(0.6, math.nan, 1.0, 1.5, 2 / 3) == pytest.approx(0.9)


def test_a_step_that_was_not_found_counts_twice() -> None:
    assert after_failure(0.6, 1.5) == pytest.approx(0.6 * 2.25)


def test_lambda_stays_within_its_bounds() -> None:
    assert after_step(DAMPING_MIN, 1.0, 1.0, 1.5, 2 / 3) == DAMPING_MIN
    assert after_step(DAMPING_MAX, 0.0, 1.0, 1.5, 2 / 3) == DAMPING_MAX
    assert after_failure(DAMPING_MAX, 1.5) == DAMPING_MAX
