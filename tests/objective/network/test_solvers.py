"""Methods for replicated variables take the same steps on variables that are cut over a grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Batch
from hpcopt.solvers.registry import make_solver
from tests.support.networks import FOUR, THREE, data, on_grid, on_own_ranks, positions, start, torch_model
from tests.support.simulated import on_ranks

GRIDS = [(1, 1), (1, 2), (3, 2)]
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("sgd", {"learning_rate": 0.3, "momentum": 0.9}),
    ("adam", {"learning_rate": 0.05}),
    ("lbfgs", {}),
    ("nlcg", {"preset": "paper", "warmup_epochs": 0.0, "learning_rate": 0.5}),
    ("nlcg", {"step_rule": "hager_zhang", "preconditioner": "diagonal_bfgs", "beta": "hz"}),
    ("nlcg", {"preconditioner": "gauss_newton_diagonal"}),
    ("trust_region", {"model": "lsr1"}),
    ("trust_region", {"model": "lbfgs"}),
    ("trust_region", {"model": "first_order"}),
]
FEW = Batch(torch.tensor([1, 2, 5, 7]), 4, 4, key=(0, 1))


def losses(objective: Any, method: tuple[str, dict[str, Any]], w: torch.Tensor, batch: Batch) -> list[float]:
    """Losses before each of 15 steps from w."""
    solver = make_solver(*method, 20.0)
    state, trace = solver.init(objective), []
    state["parameters"].copy_(w)
    for _ in range(15):
        state, report = solver.step(objective, state, batch)
        trace.append(report.loss)
    return trace


@pytest.mark.parametrize("batch", [None, FEW], ids=["full", "mini"])
@pytest.mark.parametrize(("sizes", "loss"), [(FOUR, "squared"), (THREE, "cross_entropy")], ids=str)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_run_on_a_grid_is_that_of_the_replicated_model(comm: Communicator, method, sizes, loss, batch):
    w = start(sizes)
    replicated = DataParallelObjective(torch_model(sizes, w), loss, *data(sizes, loss), comm, weight_decay=1e-3)
    chosen = batch or replicated.full_batch
    expected = losses(replicated, method, replicated.initial_vector(), chosen)
    assert expected[-1] < expected[0]
    for grid in GRIDS:

        def run(ranks: Any, grid: tuple[int, int] = grid) -> list[float]:
            objective = on_grid(ranks, grid, sizes, loss, weight_decay=1e-3)
            return losses(objective, method, w[positions(objective.partition, ranks.rank)], chosen)

        found = on_ranks(grid[0] * grid[1], run)
        assert all(trace == found[0] for trace in found)
        assert found[0] == pytest.approx(expected, rel=1e-10)


def test_random_signs_are_those_of_a_variable_however_the_network_is_cut():
    (whole,) = on_ranks(1, lambda ranks: on_grid(ranks, (1, 1)).signs(3))
    assert sorted(whole.unique().tolist()) == [-1.0, 1.0]

    def same(objective: Any, rank: int) -> bool:
        return torch.equal(objective.signs(3), whole[positions(objective.partition, rank)])

    assert all(on_ranks(6, lambda ranks: same(on_grid(ranks, (3, 2)), ranks.rank)))
    assert all(on_ranks(6, lambda ranks: same(on_own_ranks(ranks, (1, 2, 1, 1, 1)), ranks.rank)))


@pytest.mark.parametrize("jacobian", ["explicit", "implicit"])
def test_newton_on_subsets_is_that_of_the_replicated_model_with_either_jacobian(comm: Communicator, jacobian):
    w, method = (
        start(THREE),
        ("newton", {"subset": 0.5, "subset_least": 5, "cg_iterations": 8, "preconditioner": "none"}),
    )
    replicated = DataParallelObjective(torch_model(THREE, w), "cross_entropy", *data(THREE, "cross_entropy"), comm)
    expected = losses(replicated, method, replicated.initial_vector(), replicated.full_batch)

    def run(ranks: Any) -> list[float]:
        objective = on_grid(ranks, (2, 2), THREE, jacobian=jacobian)
        return losses(objective, method, w[positions(objective.partition, ranks.rank)], objective.full_batch)

    assert on_ranks(4, run) == [pytest.approx(expected, rel=1e-9)] * 4


@pytest.mark.parametrize("name", ["lars", "apts"])
def test_methods_that_cannot_work_say_so(name):
    def run(ranks):
        objective = on_grid(ranks, (1, 2))
        solver = make_solver(name, {}, 20.0)
        with pytest.raises(UsageError, match="cut over the ranks"):
            solver.step(objective, solver.init(objective), objective.full_batch)
        return True

    assert all(on_ranks(2, run))
