"""NLCG on several ranks: what a step sends, and its optimiser of torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mpi4py import MPI

from hpcopt.comm.communicator import Communicator
from hpcopt.optim import NLCG
from hpcopt.solvers.registry import make_solver
from tests.support.closures import same_everywhere, unequal, values_of
from tests.support.problems import samples, sharded, small_network

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


def trained(comm: Communicator, data: tuple[torch.Tensor, torch.Tensor], **options: Any) -> tuple[list[float], Any]:
    """Losses of a few steps and the parameters after them."""
    model = small_network(seed=comm.rank)
    optimizer = NLCG(model, "cross_entropy", comm=comm, weight_decay=0.01, **options)
    return [optimizer.step(*data) for _ in range(6)], values_of(model)


@pytest.mark.parametrize("full_batch", [True, False])
@pytest.mark.parametrize("options", [{"subset": 0.3, "subset_least": 1, "factor_samples": 20}, {"micro_batch": 4}])
def test_steps_are_those_of_one_rank_with_all_samples(
    comm: Communicator, full_batch: bool, options: dict[str, Any]
) -> None:
    ours, w = trained(comm, unequal(comm), full_batch=full_batch, **options)
    theirs, v = trained(Communicator(MPI.COMM_SELF), samples(), full_batch=full_batch, **options)
    assert ours == pytest.approx(theirs, rel=1e-9)
    torch.testing.assert_close(w, v, rtol=1e-7, atol=1e-8)
    assert same_everywhere(comm, w)


@pytest.mark.mpi(min_size=2)
def test_a_rank_may_have_no_sample_in_a_batch(comm: Communicator) -> None:
    inputs, targets = samples()
    count = 0 if comm.rank == comm.size - 1 else 5
    mine = slice(5 * comm.rank, 5 * comm.rank + count)
    losses, w = trained(comm, (inputs[mine], targets[mine]))
    assert losses[-1] < losses[0]
    assert same_everywhere(comm, w)


class FailsOnOneRank(torch.nn.Module):
    """A network that raises from one of its calls on, on the last rank, until it is disarmed."""

    def __init__(self, comm: Communicator, at: int) -> None:
        super().__init__()
        self.inner, self.left = small_network(), at if comm.rank == comm.size - 1 else 0
        self.armed = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.armed and self.left:
            self.left = max(self.left - 1, 1)
            if self.left == 1:
                raise MemoryError("this rank is full")
        found: torch.Tensor = self.inner(x)
        return found


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("at", [2, 3, 5])
def test_an_exception_of_one_ranks_model_is_raised_on_all(comm: Communicator, at: int) -> None:
    """In the factors, the gradient, the values before and after, or the curvature: nobody waits for anybody."""
    model = FailsOnOneRank(comm, at)
    optimizer = NLCG(model, "cross_entropy", comm=comm)
    inputs, targets = unequal(comm)
    optimizer.step(inputs, targets)
    before, model.armed = values_of(model), True
    with pytest.raises(RuntimeError, match=f"(?s)rank {comm.size - 1}.*this rank is full"):
        optimizer.step(inputs, targets)
    assert torch.equal(values_of(model), before)
    model.armed = False
    optimizer.step(inputs, targets)
    assert same_everywhere(comm, values_of(model))
