"""Every rank solves the damped system of its block without a message, by conjugate gradients or by Gram matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hpcopt.linalg.conjugate_gradient import conjugate_gradients
from hpcopt.linalg.gram_solve import LayerFactors, output_factors, solve_by_gram
from hpcopt.objective.network.explicit import bytes_each
from hpcopt.objective.network.objective import NetworkObjective
from hpcopt.objective.protocol import Block
from tests.support.networks import DECAY, FOUR, SAMPLES, THREE, on_grid, positions, start, whole_layout
from tests.support.simulated import on_ranks

DAMPING = 0.1


def layer_factors(block: Block) -> list[LayerFactors]:
    """The factors of a rank as one (Z, M) a layer, with M^L written out."""
    found = []
    for layer in block.factors().layers:
        first, last = layer.outputs.start, layer.outputs.stop
        units = layer.factors
        if units is None:
            units = output_factors(block.outputs, first, last - first, layer.inputs)
        found.append(LayerFactors(layer.inputs, units))
    return found


def matrices(objective: NetworkObjective, vector: torch.Tensor) -> list[torch.Tensor]:
    """A flat vector as one matrix (u, v) a layer, with the biases as its last row: where they lie already."""
    layers = objective.partition.blocks(objective.comm.rank)
    return [vector[held.start : held.biases.stop].view(-1, held.outputs.count) for held in layers]


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (2, 2), (3, 2)], ids=str)
@pytest.mark.parametrize(("sizes", "loss"), [(FOUR, "squared"), (THREE, "cross_entropy")], ids=str)
def test_both_solutions_of_the_block_system_agree_and_are_directions_of_descent(grid, sizes, loss):
    def run(comm: Any) -> float:
        objective = on_grid(comm, grid, sizes, loss, weight_decay=DECAY, micro_batch=4)
        w = start(sizes)[positions(objective.partition, comm.rank)]
        _, gradient = objective.value_and_gradient(w, objective.full_batch)
        linear = objective.linearize(w, objective.full_batch)
        before = comm.ledger.snapshot()

        def inner(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x @ y.T

        by_cg = conjugate_gradients(
            linear.block_product, gradient, DAMPING, inner, tolerance=1e-12, most=4 * objective.size
        )
        assert by_cg.converged
        curvature = linear.block.factors().probabilities
        assert (curvature is None) == (loss == "squared")
        layers = layer_factors(linear.block)
        direct = solve_by_gram(layers, matrices(objective, gradient), DAMPING + DECAY, curvature)
        assert comm.ledger.rows(before) == []
        direction = torch.cat([part.reshape(-1) for part in direct.direction])
        torch.testing.assert_close(direction, by_cg.direction, rtol=1e-8, atol=1e-10)
        return objective.dot(gradient, direction)

    assert all(slope < 0 for slope in on_ranks(grid[0] * grid[1], run))


def test_factors_that_are_one_piece_are_not_copied():
    def run(comm: Any) -> None:
        objective = on_grid(comm, (2, 2))
        linear = objective.linearize(objective.initial_vector(), objective.full_batch)
        (kept,) = linear.block_factors()
        *hidden, last = linear.block.factors().layers
        assert [layer.factors.data_ptr() for layer in hidden] == [kept.units[m].data_ptr() for m in sorted(kept.units)]
        assert last.factors is None

    on_ranks(4, run)


@pytest.mark.parametrize("left", [0, 10**6])
def test_a_direct_solution_may_take_what_the_factors_leave_of_the_limit(left):
    def run(comm: Any) -> int:
        limit = SAMPLES * bytes_each(whole_layout(FOUR), 8) + left
        objective = on_grid(comm, (1, 1), FOUR, memory_limit=limit)
        return objective.linearize(objective.initial_vector(), objective.full_batch).block.memory

    assert on_ranks(1, run) == [left]
