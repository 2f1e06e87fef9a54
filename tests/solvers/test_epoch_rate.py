"""A rate that follows the loss at the ends of epochs."""

from __future__ import annotations

import math

import pytest
import torch

from hpcopt.solvers.epoch_rate import EpochRate
from hpcopt.solvers.solver import State


def after(losses: list[float], rule: EpochRate | None = None) -> State:
    """The state after epochs of these losses; the last one has left 2 in its parameters, the others 1."""
    rule = rule or EpochRate(1.5, 0.1)
    parameters = torch.zeros(3)
    state: State = {"parameters": parameters, "average": parameters.clone(), "first_moment": torch.ones(3)}
    state |= rule.init(parameters)
    for number, loss in enumerate(losses):
        for key in ("parameters", "average"):
            state[key].fill_(2.0 if number == len(losses) - 1 else 1.0)  # type: ignore[union-attr]
        rule.update(state, loss)
    return state


@pytest.mark.parametrize(
    ("losses", "factor"),
    [
        ([5.0], 1.0),
        ([5.0, 4.0], 1.5),
        ([5.0, 4.0, 4.39], 2.25),
        ([5.0, 4.0, 4.41], 0.75),
        ([5.0, 4.0, 4.3, 4.1], 2.25),
        ([5.0, 4.0, 4.3, 4.3], 1.125),
        ([5.0, 4.0, 4.3, 4.1, 4.1], 1.125),
        ([5.0, 4.0, 4.3, 4.1, math.nan, 4.1], 1.6875),
        ([5.0, 4.0, 4.3, 3.9, 4.1], 1.5**4),
        ([math.nan, 5.0, 4.0], 1.5),
        ([5.0, math.nan], 0.5),
        ([5.0] * 20, 100.0),
    ],
)
def test_the_rate_grows_unless_the_loss_is_above_the_least_so_far(losses: list[float], factor: float) -> None:
    assert after(losses)["rate_factor"] == pytest.approx(factor)


def test_a_growth_of_1_keeps_the_rate_whatever_the_loss_does() -> None:
    assert after([5.0, 4.0, 400.0, 4.1, 4.1], EpochRate(1.0, 0.1))["rate_factor"] == 1.0


@pytest.mark.parametrize("loss", [8.1, math.inf, math.nan])
def test_an_epoch_that_more_than_doubles_the_loss_is_taken_back(loss: float) -> None:
    state = after([5.0, 4.0, loss])
    for key in ("parameters", "average"):
        assert torch.equal(state[key], torch.ones(3))  # type: ignore[arg-type]
    assert not bool(state["first_moment"].any())  # type: ignore[union-attr]
    assert state["least_loss"] == 4.0


def test_the_second_epoch_above_the_least_is_taken_back_where_the_loss_has_risen() -> None:
    state = after([5.0, 4.0, 4.1, 4.5])
    for key in ("parameters", "average"):
        assert torch.equal(state[key], torch.ones(3))  # type: ignore[arg-type]
    assert (state["rate_factor"], state["above_least"]) == (1.5**2 / 2, 0)
    assert torch.equal(after([5.0, 4.0, 4.1, 4.3])["parameters"], torch.full((3,), 2.0))  # type: ignore[arg-type]


def test_a_rate_at_which_the_loss_stays_above_the_least_is_not_halved_for_ever() -> None:
    assert after([5.0, 4.0] + [4.3, 4.5] * 8)["rate_factor"] > 0.1


def test_an_epoch_that_raises_the_loss_by_less_is_not_taken_back() -> None:
    state = after([5.0, 4.0, 7.9])
    assert torch.equal(state["parameters"], torch.full((3,), 2.0))  # type: ignore[arg-type]
    assert bool(state["first_moment"].all())  # type: ignore[union-attr]
