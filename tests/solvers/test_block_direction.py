"""Newton with block-diagonal directions: every rank of a grid solves for its own variables."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.network.objective import NetworkObjective
from hpcopt.solvers.block_direction import BlockSolver
from hpcopt.solvers.newton import Newton
from tests.support.networks import FOUR, THREE, data, on_grid, positions, start, torch_model
from tests.support.simulated import on_ranks

DECAY, DAMPING = 0.01, 0.1
GRIDS = [(1, 1), (1, 2), (3, 1), (2, 2)]
PROBLEMS = [(FOUR, "squared"), (THREE, "cross_entropy")]
SHORT = Newton(direction="block", subset=1.0, cg_tolerance=1e-10)


class Stops:
    """A pace that ends the phase of each rank after so many iterations."""

    def __init__(self, most: int) -> None:
        self.most, self.calls = most, ""

    def begin(self) -> None:
        self.calls += "b"

    def goes_on(self, done: int) -> bool:
        return done < self.most

    def end(self) -> None:
        self.calls += "e"


def at_start(comm: Any, grid: tuple[int, int], sizes: tuple[int, ...], loss: str) -> tuple[NetworkObjective, Any]:
    """The problem and this rank's numbers of a point."""
    objective = on_grid(comm, grid, sizes, loss, weight_decay=DECAY, micro_batch=4)
    return objective, start(sizes)[positions(objective.partition, comm.rank)]


def dense(linear: Any, size: int, by_layer: bool) -> torch.Tensor:
    """G_pp as a matrix."""
    rows = torch.eye(size, dtype=torch.float64)
    return torch.stack([linear.block_product(row, by_layer) for row in rows])


@pytest.mark.parametrize("solver", ["cg", "gram"])
@pytest.mark.parametrize("blocks", ["rank", "layer"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(("sizes", "loss"), PROBLEMS, ids=str)
def test_a_rank_solves_the_dense_system_of_its_block(grid, sizes, loss, blocks, solver):
    def run(comm: Any) -> Any:
        objective, w = at_start(comm, grid, sizes, loss)
        loss_value, gradient = objective.value_and_gradient(w, objective.full_batch)
        linear = objective.linearize(w, objective.full_batch)
        matrix = dense(linear, objective.size, blocks == "layer")
        matrix += DAMPING * torch.eye(objective.size, dtype=torch.float64)
        before = objective.work.curvature_products
        solve = BlockSolver(blocks, solver, 1e-12, 10 * objective.size).solve
        found = solve(linear.block, gradient, math.sqrt(objective.dot(gradient, gradient)), DAMPING, 0.0)
        expected = torch.linalg.solve(matrix, -gradient)
        torch.testing.assert_close(found.direction, expected, rtol=1e-8, atol=1e-9)
        assert found.finite
        assert math.isfinite(loss_value)
        return found.iterations, objective.work.curvature_products - before

    results = on_ranks(grid[0] * grid[1], run)
    assert all(result == results[0] for result in results)
    iterations, products = results[0]
    assert len(iterations) == grid[0] * grid[1]
    if solver == "cg":
        assert min(iterations) > 3
        assert products == pytest.approx(sum(iterations) / len(iterations))
    else:
        assert set(iterations) == {0}
        assert products > 0


@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_phase_that_is_cut_short_leaves_a_direction_of_descent(most):
    def run(comm: Any) -> Any:
        objective, w = at_start(comm, (2, 2), FOUR, "cross_entropy")
        pace = objective.pace = Stops(most + comm.rank)
        _, gradient = objective.value_and_gradient(w, objective.full_batch)
        norm = math.sqrt(objective.dot(gradient, gradient))
        block = objective.linearize(w, objective.full_batch).block
        found = BlockSolver("rank", "cg", 1e-12, 100).solve(block, gradient, norm, DAMPING, 0.0)
        assert float(gradient @ found.direction) < 0
        assert pace.calls == "be"
        return found.iterations

    assert on_ranks(4, run) == [(most, most + 1, most + 2, most + 3)] * 4


def test_a_rank_without_a_gradient_of_its_own_stays_where_it_is():
    def run(comm: Any) -> Any:
        objective, w = at_start(comm, (1, 2), FOUR, "squared")
        pace = objective.pace = Stops(100)
        _, gradient = objective.value_and_gradient(w, objective.full_batch)
        gradient *= 1e-14 if comm.rank == 1 else 1.0
        norm = math.sqrt(objective.dot(gradient, gradient))
        block = objective.linearize(w, objective.full_batch).block
        found = BlockSolver("rank", "cg", 1e-6, 100).solve(block, gradient, norm, DAMPING, 0.0)
        assert bool((found.direction == 0).all()) == (comm.rank == 1)
        assert pace.calls == "be"
        return found.iterations[1]

    assert on_ranks(2, run) == [0, 0]


def test_numbers_that_are_not_finite_on_one_rank_are_known_to_all():
    def run(comm: Any) -> Any:
        objective, w = at_start(comm, (1, 2), FOUR, "squared")
        _, gradient = objective.value_and_gradient(w, objective.full_batch)
        block = objective.linearize(w, objective.full_batch).block
        if comm.rank == 1:
            gradient[0] = math.nan
        return BlockSolver("rank", "cg", 1e-6, 100).solve(block, gradient, 1.0, DAMPING, 0.0).finite

    assert on_ranks(2, run) == [False, False]


def test_one_rank_has_the_direction_of_the_full_system():
    def run(comm: Any, direction: str) -> list[float]:
        objective, w = at_start(comm, (1, 1), FOUR, "cross_entropy")
        solver, trace = replace(SHORT, direction=direction), []
        state = solver.init(objective)
        state["parameters"].copy_(w)
        for _ in range(6):
            state, report = solver.step(objective, state, objective.full_batch)
            trace.append(report.loss_after)
        return trace

    (block,) = on_ranks(1, lambda comm: run(comm, "block"))
    (full,) = on_ranks(1, lambda comm: run(comm, "full"))
    assert block == pytest.approx(full, rel=1e-8)


@pytest.mark.parametrize("blocks", ["rank", "layer"])
@pytest.mark.parametrize("combine", [True, False])
def test_steps_lower_the_loss_and_tell_of_every_rank(blocks, combine):
    def run(comm: Any) -> Any:
        objective, w = at_start(comm, (2, 2), FOUR, "cross_entropy")
        solver = replace(SHORT, blocks=blocks, combine=combine, cg_tolerance=0.01)
        state, reports = solver.init(objective), []
        state["parameters"].copy_(w)
        for _ in range(20):
            state, report = solver.step(objective, state, objective.full_batch)
            reports.append(report)
        assert all(report.accepted and report.loss_after < report.loss for report in reports)
        assert all(report.inner_iterations == sum(report.local_iterations) for report in reports)
        too_long = [k for k in range(1, 20) if reports[k].predicted < 0]
        assert bool(too_long) == (not combine), "without the combination the model foretells a rise for some steps"
        assert all(reports[k].damping > reports[k - 1].damping for k in too_long)
        assert state["block_iterations"] == sum(reports[-1].local_iterations) / 4
        return [(report.loss_after, report.local_iterations) for report in reports]

    results = on_ranks(4, run)
    assert all(result == results[0] for result in results)
    assert results[0][-1][0] < 0.5 * results[0][0][0]


def test_what_conjugate_gradients_last_needed_decides_for_the_direct_solution():
    """11 samples with 3 outputs: a matrix of 33 rows beside blocks of a few dozen numbers."""

    def run(comm: Any) -> Any:
        objective, w = at_start(comm, (1, 2), FOUR, "squared")
        _, gradient = objective.value_and_gradient(w, objective.full_batch)
        block = objective.linearize(w, objective.full_batch).block
        solver, found = BlockSolver("rank", "auto", 1e-6, 100), []
        for expected, memory in ((0.0, 2**30), (2.0, 2**30), (1e4, 2**30), (1e4, 1000)):
            block.memory = memory
            solved = solver.solve(block, gradient, 1.0, DAMPING, expected)
            found.append(solved.iterations[comm.rank] == 0)
            assert solved.expected(7.5) == (7.5 if not any(solved.iterations) else sum(solved.iterations) / 2)
        return found

    assert on_ranks(2, run) == [[False, False, True, False]] * 2


def test_replicated_variables_have_no_blocks(comm: Communicator):
    w = start(FOUR)
    objective = DataParallelObjective(torch_model(FOUR, w), "squared", *data(FOUR, "squared"), comm)
    with pytest.raises(UsageError, match=r"every rank holds all of them\. Use direction = \"full\""):
        SHORT.step(objective, SHORT.init(objective), objective.full_batch)


def test_sweeps_through_the_network_know_no_blocks():
    def run(comm: Any) -> bool:
        objective = on_grid(comm, (1, 2), FOUR, jacobian="implicit")
        with pytest.raises(UsageError, match=r'jacobian = "implicit" does not make'):
            SHORT.step(objective, SHORT.init(objective), objective.full_batch)
        return True

    assert all(on_ranks(2, run))


def test_factors_that_do_not_fit_are_refused_on_all_ranks():
    def run(comm: Any) -> bool:
        objective = on_grid(comm, (1, 2), FOUR, memory_limit=2000)
        with pytest.raises(UsageError, match="do not fit in the memory limit"):
            SHORT.step(objective, SHORT.init(objective), objective.full_batch)
        return True

    assert all(on_ranks(2, run))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"direction": "diagonal"}, "direction = 'diagonal' must be one of 'full', 'block'"),
        (
            {"blocks": "layer"},
            r"""blocks = 'layer' has no effect with direction = "full"\. Set solver\.direction to "block" """,
        ),
        ({"block_solver": "cg"}, 'block_solver = .* has no effect with direction = "full"'),
        ({"direction": "block", "blocks": "neuron"}, "blocks = 'neuron' must be one of 'rank', 'layer'"),
        ({"direction": "block", "block_solver": "lu"}, "block_solver = 'lu' must be one of 'auto', 'cg', 'gram'"),
    ],
)
def test_options_that_cannot_be_are_refused(options, words):
    with pytest.raises(UsageError, match=words.strip()):
        Newton(**options)
