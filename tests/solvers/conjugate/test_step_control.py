"""The step length that follows the loss: the table at both ends of every interval, and what the state keeps."""

from __future__ import annotations

import math

import pytest

from hpcopt.solvers.conjugate.step_control import BASE_MIN, StepControl, feedback

LINES = [
    (0.01, 0.025, 1.0, 0.1),
    (0.025, 0.05, 0.975, 0.1),
    (0.05, 0.075, 0.95, 0.2),
    (0.075, 0.10, 0.9, 0.3),
    (0.10, 0.125, 0.8, 0.5),
    (0.125, 0.15, 0.7, 0.7),
    (0.15, 10.0, 0.5, 0.9),
]


@pytest.mark.parametrize("tau", [1.0, 2.0])
@pytest.mark.parametrize(("above", "upto", "factor", "undo"), LINES)
def test_every_interval_holds_its_upper_end_and_not_its_lower(
    above: float, upto: float, factor: float, undo: float, tau: float
) -> None:
    low, high = 1 + above * tau, 1 + upto * tau
    for ratio in (math.nextafter(low, math.inf), (low + high) / 2, high):
        assert feedback(ratio, tau, 1.05) == (factor, undo)


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_below_the_first_cut_the_base_grows_and_on_it_nothing_happens(tau: float) -> None:
    cut = 1 + 0.01 * tau
    assert feedback(math.nextafter(cut, 0), tau, 1.05) == (1.05, 0.0)
    assert feedback(cut, tau, 1.05) == (1.0, 0.0)


def test_a_ratio_that_is_no_number_cuts_most() -> None:
    assert feedback(math.nan, 1.0, 1.05) == (0.5, 0.9)


def bases(mode: str, losses: list[float]) -> list[tuple[float, float]]:
    control = StepControl(mode, 1.0)
    state = control.init()
    return [(control.update(state, loss, step), float(state["base"])) for step, loss in enumerate(losses)]


def test_a_loss_of_0_has_not_risen_above_0() -> None:
    for mode in ("step", "online"):
        assert bases(mode, [0.0] * 7) == [(0.0, 1.0)] * 7


def test_the_smoothed_loss_is_looked_at_in_every_fifth_step() -> None:
    found = bases("step", [1.0] * 5 + [2.0] + [2.0] * 5)
    assert found[:5] == [(0.0, 1.0)] * 5
    assert found[5] == (0.9, 0.5)  # 0.7 + 0.3 * 2 is 1.3 times the reference
    assert found[6:10] == [(0.0, 0.5)] * 4
    smoothed = 2 - 0.7**6
    assert smoothed / 1.3 > 1.15
    assert found[10] == (0.9, 0.25)


def test_online_compares_every_loss_with_the_smoothed_one_that_holds_it() -> None:
    assert bases("online", [1.0, 1.02]) == [(0.0, 1.0), (0.1, 1.0)]  # 1.02 / 1.006 is 1.0139
    assert bases("online", [1.0, 1.5, 1.0])[1] == (0.9, 0.5)
    assert bases("online", [1.0, 1.5, 1.0])[2] == (0.0, 0.5 * 1.02)


def test_the_base_stays_within_its_bounds() -> None:
    grown = bases("online", [1.0] * 10)
    assert {base for _, base in grown} == {1.0}
    fallen = bases("online", [2.0**step for step in range(60)])
    assert min(base for _, base in fallen) == BASE_MIN


def test_none_leaves_the_base_alone() -> None:
    assert bases("none", [1.0, 5.0, 25.0, 125.0, 1e3, 1e4]) == [(0.0, 1.0)] * 6
