"""NLCG on several ranks: what a step sends, whatever its numbers are."""

from __future__ import annotations

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.solvers.registry import make_solver
from tests.support.problems import sharded

pytestmark = pytest.mark.mpi


def test_a_step_on_the_full_batch_is_one_reduction_of_all_numbers(comm: Communicator) -> None:
    objective, solver = sharded(comm), make_solver("nlcg", {"preconditioner": "identity"})
    batch, state = objective.full_batch, solver.init(objective)
    for number in range(4):
        before = {row.label: row.calls for row in comm.ledger.rows()}
        state, report = solver.step(objective, state, batch)
        assert report.inner_iterations == 1
        calls = {row.label: row.calls - before.get(row.label, 0) for row in comm.ledger.rows()}
        assert calls["gradient"] == (1 if number else 2)  # at the start, and with every trial that is accepted
        assert calls["curvatures"] == 1
        assert calls.get("value", 0) == 0


@pytest.mark.mpi(min_size=2)
def test_all_ranks_make_the_same_calls_when_one_rank_is_not_finite(comm: Communicator) -> None:
    objective, solver = sharded(comm), make_solver("nlcg", {})
    state = solver.init(objective)
    state, _ = solver.step(objective, state, objective.full_batch)
    if comm.rank == 1:
        objective.shard.targets = objective.shard.targets.clone()
        objective.shard.inputs = objective.shard.inputs * torch.nan
    state["known"] = False
    w = state["parameters"].clone()  # type: ignore[union-attr]
    state, report = solver.step(objective, state, objective.full_batch)
    assert not report.finite
    assert torch.equal(state["parameters"], w)  # type: ignore[arg-type]
    calls = sorted((row.label, row.calls) for row in comm.ledger.rows())
    assert comm.allgather_objects(calls) == [calls] * comm.size
