"""Products of a model whose samples, and vectors, are spread over the ranks: those of the dense matrices in float64."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.layout.block import block
from hpcopt.objective.protocol import Batch, Vector
from hpcopt.objective.sharded.objective import ShardedStateObjective
from hpcopt.objective.variable_blocks import VariableBlockObjective
from tests.support.grids import deep_network, divides, on_grid
from tests.support.networks import reference_curvature
from tests.support.problems import CLASSES, FEATURES, SAMPLES, samples, sharded

pytestmark = pytest.mark.mpi

WIDTHS, DECAY = (FEATURES, 7, 6, 4, CLASSES), 0.3
SIZE = sum(u * v + v for u, v in pairwise(WIDTHS))
EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(params=["copies", "slices", "one row", "two rows"])
def layout(request: pytest.FixtureRequest, comm: Communicator) -> str:
    """Whole copies of w, slices of it, or ranks of a row that share samples."""
    if request.param == "two rows":
        divides(comm, 2)
    return str(request.param)


def made(comm: Communicator, layout: str, loss: str, count: int = SAMPLES, **options: Any) -> Any:
    """The problem in that layout, with at most four samples in a forward pass."""
    options = {"model": deep_network(), "weight_decay": DECAY, "micro_batch": 4} | options
    if "row" in layout:
        return on_grid(comm, 1 if layout == "one row" else 2, loss, count=count, **options)
    copies = sharded(comm, loss, count=count, **options)
    return ShardedStateObjective(copies, 0) if layout == "slices" else copies


def held(objective: Any, chosen: Sequence[int]) -> tuple[Batch, list[int]]:
    """A batch of those samples, and which of them this rank evaluates. *Collective*."""
    first, count = objective.shards()
    mine = [i for i in chosen if first <= i < first + count]
    batch = Batch(torch.tensor([i - first for i in mine], dtype=torch.int64), len(mine), len(chosen))
    if isinstance(objective, VariableBlockObjective):
        mine = mine[block(len(mine), objective.grid.columns, objective.comm.rank % objective.grid.columns).slice]
    return batch, mine


def own(objective: Any, whole: Vector) -> Vector:
    """What this rank holds of a vector. *Collective*."""
    if not isinstance(objective, ShardedStateObjective):
        return whole
    start = sum(objective.comm.allgather_objects(objective.size)[: objective.comm.rank])
    return whole[start : start + objective.size].clone()


def outputs(w: Vector, x: torch.Tensor) -> torch.Tensor:
    """Of ``deep_network``, written out."""
    start = 0
    for u, v in pairwise(WIDTHS):
        weights, biases = w[start : start + u * v].view(v, u), w[start + u * v : start + u * v + v]
        x, start = x @ weights.T + biases, start + u * v + v
        x = x.tanh() if start < len(w) else x
    return x


def dense(loss: str, count: int, chosen: list[int], w: Vector) -> tuple[torch.Tensor, torch.Tensor]:
    """J (b C, n), and G (n, n) with weight decay."""
    x = samples(loss, count)[0][chosen]
    jacobian = torch.autograd.functional.jacobian(lambda w: outputs(w, x).reshape(-1), w)
    matrix = jacobian.T @ reference_curvature(loss, outputs(w, x)) @ jacobian / len(chosen)
    return jacobian, matrix + DECAY * torch.eye(len(w), dtype=w.dtype)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
@pytest.mark.parametrize(
    ("count", "chosen"),
    [(SAMPLES, list(range(SAMPLES))), (SAMPLES, [1, 5, 8, 9, 30]), (3, [0, 1, 2]), (3, [2])],
    ids=["all samples", "some", "fewer than ranks", "one"],
)
def test_products_are_those_of_the_dense_matrices_whoever_holds_samples_and_vectors(
    comm: Communicator, layout: str, loss: str, count: int, chosen: list[int]
) -> None:
    objective = made(comm, layout, loss, count)
    generator = torch.Generator().manual_seed(0)
    w, v, other = torch.randn(3, SIZE, generator=generator, dtype=torch.float64)
    u = torch.randn(count, CLASSES, generator=generator, dtype=torch.float64)
    jacobian, matrix = dense(loss, count, chosen, w)
    batch, mine = held(objective, chosen)
    linear, part = objective.linearize(own(objective, w), batch), own(objective, v)
    rows = torch.tensor(mine, dtype=torch.int64)
    pushed = (jacobian @ v).view(len(chosen), CLASSES)[[chosen.index(i) for i in mine]]
    torch.testing.assert_close(linear.jvp(part), pushed, **EXACT)
    torch.testing.assert_close(linear.vjp(u[rows]), own(objective, jacobian.T @ u[chosen].reshape(-1)), **EXACT)
    torch.testing.assert_close(linear.gauss_newton(part), own(objective, matrix @ v), **EXACT)
    directions, stacked = torch.stack([part, own(objective, other)]), torch.stack([v, other])
    for fresh in (False, True):  # from the graphs of the products, and by forward mode
        by = objective.linearize(own(objective, w), batch) if fresh else linear
        torch.testing.assert_close(by.curvatures(directions), stacked @ matrix @ stacked.T, **EXACT)


def test_products_with_masks_and_statistics_of_each_rank_are_adjoint_and_symmetric(
    comm: Communicator, layout: str
) -> None:
    model = deep_network(dropout=0.3, batch_norm=True)
    objective = made(comm, layout, "cross_entropy", model=model, micro_batch=None)
    generator = torch.Generator().manual_seed(1)
    size = len(torch.nn.utils.parameters_to_vector(model.parameters()))
    x, y = (own(objective, each) for each in torch.randn(2, size, generator=generator, dtype=torch.float64))
    linear = objective.linearize(objective.initial_vector(), objective.full_batch)
    tangents = linear.jvp(x)
    u = torch.randn(SAMPLES, CLASSES, generator=generator, dtype=torch.float64)[: len(tangents)]
    (pushed,) = comm.reduce_scalars([float((tangents * u).sum())])
    assert pushed == pytest.approx(objective.dot(x, linear.vjp(u)), rel=1e-12)
    one, other = objective.dot(x, linear.gauss_newton(y)), objective.dot(y, linear.gauss_newton(x))
    assert one == pytest.approx(other, rel=1e-11)
