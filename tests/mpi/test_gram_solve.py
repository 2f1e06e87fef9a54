"""The direct solve of each rank's own block of a network on a grid, against products with that block."""

from __future__ import annotations

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.layout.grid import ProcessGrid
from hpcopt.layout.network import GridLayout
from hpcopt.linalg.gram_solve import LayerFactors, output_factors, solve_by_gram
from hpcopt.objective.network.explicit import ExplicitLinearization
from hpcopt.objective.network.objective import NetworkObjective

pytestmark = pytest.mark.mpi

SIZES, SAMPLES = [7, 6, 5, 4], 9
GRIDS = {1: (1, 1), 2: (2, 1), 3: (1, 3), 4: (2, 2)}


def objective_on(comm: Communicator, loss: str) -> NetworkObjective:
    """A network on a grid of all ranks, each with its columns of the same data."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(SAMPLES, SIZES[0], generator=generator, dtype=torch.float64)
    labels = torch.randint(SIZES[-1], (SAMPLES,), generator=generator)
    grid = GRIDS[comm.size]
    columns = GridLayout(SIZES, ProcessGrid(*grid)).blocks(comm.rank)[0].inputs.slice
    return NetworkObjective(SIZES, "tanh", loss, inputs[:, columns].contiguous(), labels, comm, grid)


def block_of(objective: NetworkObjective, made: ExplicitLinearization) -> list[LayerFactors]:
    """This rank's layers, with ones in the inputs where it holds the biases."""
    (piece,) = made.block_factors()
    layers = []
    for view in objective.network.views(objective.initial_vector()):
        given = piece.inputs[view.number]
        inputs = given if view.biases is None else torch.cat([given, given.new_ones(len(given), 1)], dim=1)
        last, own = view.number == len(SIZES) - 1, objective.network.outputs
        identity = output_factors(SIZES[-1], own.start, own.count, given)
        layers.append(LayerFactors(inputs, identity if last else piece.units[view.number]))
    return layers


def stacked(objective: NetworkObjective, vector: torch.Tensor) -> list[torch.Tensor]:
    """A vector of this rank as one matrix a layer, biases in the last row where it holds them."""
    views = objective.network.views(vector)
    return [v.weights if v.biases is None else torch.cat([v.weights, v.biases[None]]) for v in views]


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
def test_every_rank_solves_its_own_block_without_a_message(comm: Communicator, loss: str) -> None:
    if comm.size not in GRIDS:
        pytest.skip("no grid of so many ranks for this network")
    objective = objective_on(comm, loss)
    w, batch = objective.initial_vector(), objective.full_batch
    gradient = objective.value_and_gradient(w, batch)[1]
    made = objective.linearize(w, batch)
    assert isinstance(made, ExplicitLinearization)
    p = made.block_factors()[0].curvature
    before, damping = comm.ledger.totals().calls, 0.05
    found = solve_by_gram(block_of(objective, made), stacked(objective, gradient), damping, p)
    assert comm.ledger.totals().calls == before
    assert found is not None
    direction = torch.zeros_like(gradient)
    for view, part in zip(objective.network.views(direction), found.direction, strict=True):
        view.weights.copy_(part[: len(view.weights)])
        if view.biases is not None:
            view.biases.copy_(part[-1])
    rest = made.block_product(direction) + damping * direction + gradient
    assert float(rest.norm()) < 1e-12 * float(gradient.norm())
    objective.free()
