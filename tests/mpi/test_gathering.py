"""Slices of w that are gathered by parts beside the forward pass give what those gathered before it give."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.sharded.objective import ShardedStateObjective
from hpcopt.solvers.registry import make_solver
from tests.support.problems import CLASSES, FEATURES, samples, sharded, small_network

pytestmark = pytest.mark.mpi

ROWS = torch.nn.Sequential(torch.nn.Linear(FEATURES, 1), torch.nn.Tanh(), torch.nn.Linear(1, CLASSES)).double()
"""12 numbers in four tensors, of which parts lie on several ranks, and on four ranks on one."""


class Tied(torch.nn.Module):
    """Two layers with one weight, of which the second is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (torch.nn.Linear(FEATURES, FEATURES) for _ in range(2))
        self.second.weight, self.last = self.first.weight, torch.nn.Linear(FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Three layers."""
        x = torch.tanh(self.first(x))
        return self.last(torch.nn.functional.linear(x, self.second.weight, self.second.bias))


MODELS = [small_network(batch_norm=True, dropout=0.2), ROWS, Tied().double()]


@pytest.mark.parametrize("model", MODELS, ids=["normalised", "rows", "tied"])
@pytest.mark.parametrize("part_bytes", [8, 100])
def test_values_and_gradients_have_the_bits_of_one_gathering(
    comm: Communicator, model: torch.nn.Module, part_bytes: int
) -> None:
    ours, theirs = (
        ShardedStateObjective(sharded(comm, model=copy.deepcopy(model), weight_decay=0.1), part_bytes=size)
        for size in (part_bytes, 10**9)
    )
    w = ours.initial_vector()
    for _ in range(3):
        value, gradient = ours.value_and_gradient(w, ours.full_batch)
        expected = theirs.value_and_gradient(w, theirs.full_batch)
        assert value == expected[0]
        assert torch.equal(gradient, expected[1])
        w = w - gradient
        assert ours.value(w, ours.full_batch) == theirs.value(w, theirs.full_batch)
        sums = zip(ours.evaluate(w, samples()), theirs.evaluate(w, samples()), strict=True)
        assert all(mine == its for mine, its in sums)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nlcg", {"preset": "paper", "warmup_epochs": 0.0, "learning_rate": 0.05}),
        ("nlcg", {"preconditioner": "gauss_newton_diagonal"}),
        ("lbfgs", {"memory": 2}),
    ],
)
def test_methods_make_the_steps_of_whole_copies(comm: Communicator, name: str, options: dict[str, Any]) -> None:
    solver, losses = make_solver(name, options, 10.0), []
    for objective in (ShardedStateObjective(sharded(comm), part_bytes=8), sharded(comm)):
        state, found = solver.init(objective), []
        for _ in range(4):
            state, report = solver.step(objective, state, objective.full_batch)
            found.append(report.loss)
        losses.append(found)
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_ranks_without_samples_take_part(comm: Communicator) -> None:
    inputs, targets = samples()
    mine = slice(None) if comm.rank == comm.size - 1 else slice(0, 0)
    whole = DataParallelObjective(small_network(), "cross_entropy", inputs[mine], targets[mine], comm, weight_decay=0.1)
    ours, theirs = ShardedStateObjective(whole, part_bytes=8), sharded(comm, weight_decay=0.1)
    w, v = ours.initial_vector(), theirs.initial_vector()
    for _ in range(2):
        assert ours.value(w, ours.full_batch) == pytest.approx(theirs.value(v, theirs.full_batch), rel=1e-13)
        found, _ = ours.value_and_gradient(w, ours.full_batch)
        assert found == pytest.approx(theirs.value(v, theirs.full_batch), rel=1e-13)


@pytest.mark.mpi(min_size=2)
def test_a_rank_whose_evaluation_fails_leaves_no_other_one_waiting(comm: Communicator) -> None:
    objective = ShardedStateObjective(sharded(comm), part_bytes=8)
    w, batch, layer = objective.initial_vector(), objective.full_batch, objective.whole.model.module[0]
    value = objective.value(w, batch)
    hook = layer.register_forward_pre_hook(lambda *_: 1 / 0 if comm.rank == 1 else None)
    with pytest.raises(RuntimeError, match=r"rank 1 .*ZeroDivisionError"), comm.together("evaluating"):
        # What all ranks would reduce next is left out: who fails does not come to it.
        with objective._gathering.beside(w) as whole:
            objective.whole.shard.loss_sum(whole, batch)
    hook.remove()
    assert objective.value(w, batch) == value
