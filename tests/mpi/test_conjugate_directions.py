"""Conjugate directions on several ranks: the same branches everywhere, and how often the ranks talk."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.solvers.registry import make_solver
from hpcopt.solvers.solver import State, StepReport
from tests.mpi.test_solvers import FailsAt
from tests.support.problems import sharded

pytestmark = pytest.mark.mpi

PAPER: dict[str, Any] = {"preset": "paper", "warmup_epochs": 0.0, "learning_rate": 0.5}
SEARCHES: list[dict[str, Any]] = [
    {"step_rule": "strong_wolfe", "preconditioner": "diagonal_bfgs"},
    {"step_rule": "hager_zhang", "preconditioner": "identity", "beta": "hz"},
]


def steps(objective: DataParallelObjective, options: dict[str, Any], count: int) -> tuple[State, list[StepReport]]:
    solver = make_solver("nlcg", options, 100.0)
    state, reports = solver.init(objective), []
    for _ in range(count):
        state, report = solver.step(objective, state, objective.full_batch)
        reports.append(report)
    return state, reports


def calls(comm: Communicator) -> dict[str, int]:
    return {row.label: row.calls for row in comm.ledger.rows()}


@pytest.mark.parametrize("options", [PAPER, *SEARCHES], ids=str)
def test_what_steers_is_the_same_on_all_ranks_to_the_last_bit(comm: Communicator, options: dict[str, Any]) -> None:
    state, reports = steps(sharded(comm), options, 100 if options is PAPER else 20)
    numbers = {key: value for key, value in state.items() if not isinstance(value, torch.Tensor)}
    told = [(report.loss, report.step_size, report.inner_iterations) for report in reports]
    assert all(other == (numbers, told) for other in comm.allgather_objects((numbers, told)))
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(comm.bcast(value.clone()), value), key


@pytest.mark.parametrize("at", [0, 1, 2, 5])
@pytest.mark.parametrize("options", SEARCHES, ids=str)
def test_a_loss_that_is_not_finite_on_one_rank_leaves_the_calls_of_all_equal(
    comm: Communicator, options: dict[str, Any], at: int
) -> None:
    objective = sharded(comm)
    objective.__class__ = FailsAt
    objective.at = at + 1  # type: ignore[attr-defined]
    before = calls(comm)
    _, reports = steps(objective, options, 8)
    assert [report.finite for report in reports].count(False) == 1
    counted = {label: count - before.get(label, 0) for label, count in calls(comm).items()}
    assert all(other == counted for other in comm.allgather_objects(counted))


@pytest.mark.parametrize(
    ("options", "packs"), [(PAPER, 2), ({"step_rule": "control", "preconditioner": "identity", "beta": "hz"}, 1)]
)
def test_a_controlled_step_is_one_reduction_of_the_gradient_and_a_pack_or_two(
    comm: Communicator, options: dict[str, Any], packs: int
) -> None:
    objective = sharded(comm)
    before = calls(comm)
    steps(objective, options, 10)
    counted = {label: count - before.get(label, 0) for label, count in calls(comm).items()}
    assert counted.pop("gradient") == 10
    assert sum(counted.values()) == (10 * packs if comm.size > 1 else 0)


@pytest.mark.parametrize("options", SEARCHES, ids=str)
def test_a_search_is_one_reduction_of_the_gradient_a_trial(comm: Communicator, options: dict[str, Any]) -> None:
    objective = sharded(comm)
    before = calls(comm)
    _, reports = steps(objective, options, 10)
    counted = {label: count - before.get(label, 0) for label, count in calls(comm).items()}
    trials = sum(report.inner_iterations for report in reports)
    assert counted["gradient"] == 1 + trials
    assert counted["value"] == 10
    # The slope and |g|^2 of each trial; in each step the pack, and what the preconditioner learns; at the start |g|^2
    # and |w|.
    pairs = 10 if options["preconditioner"] == "diagonal_bfgs" else 0
    small = sum(counted.values()) - counted["gradient"] - counted["value"]
    assert small == (trials + 10 + pairs + 2 if comm.size > 1 else 0)
