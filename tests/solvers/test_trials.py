"""Trials of a step: what becomes of the gradients that they bring along."""

from __future__ import annotations

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.solvers.start import empty_start, evaluate_start
from hpcopt.solvers.trials import Trials
from tests.support.problems import sharded, small_network


def begun(comm: Communicator) -> tuple[DataParallelObjective, dict, torch.Tensor]:
    objective = sharded(comm, model=small_network())
    state = empty_start(objective.initial_vector())
    evaluate_start(objective, state, objective.full_batch)
    return objective, state, state["parameters"] - 0.1 * state["gradient"]


def test_the_gradient_of_a_rejected_trial_is_given_back_and_serves_the_next_one(comm: Communicator) -> None:
    objective, state, point = begun(comm)
    released: list[int] = []
    release = objective.release
    objective.release = lambda gradient: (released.append(gradient.data_ptr()), release(gradient))  # type: ignore[method-assign,func-returns-value,assignment]
    trials = Trials(objective, state, objective.full_batch)
    trials.value(point, likely=True)
    first = trials.gradient(point).data_ptr()
    assert released == []
    trials.value(point, likely=True)
    assert released == [first]
    assert trials.gradient(point).data_ptr() == first


def test_the_gradient_of_an_accepted_trial_is_kept(comm: Communicator) -> None:
    objective, state, point = begun(comm)
    trials = Trials(objective, state, objective.full_batch)
    trials.value(point, likely=True)
    loss = trials.value(point, likely=True)
    trials.move(point, loss)
    expected = objective.value_and_gradient(point, objective.full_batch)
    assert loss == pytest.approx(expected[0], rel=1e-14)
    torch.testing.assert_close(state["gradient"], expected[1], rtol=1e-12, atol=1e-14)
    assert state["known"]
