"""Products with the Jacobian of a network on real ranks: dense reference, both forms, and no message for a block."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.objective import vectors
from hpcopt.objective.network.explicit import ExplicitLinearization
from tests.support.networks import BATCH, CLOSE, DECAY, dense, gathered, on_grid, positions, start

pytestmark = pytest.mark.mpi

SIZES = ((5, 7, 6, 5, 4), (5, 6, 7, 4))


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("jacobian", "limit"), [("explicit", 10**9), ("explicit", 2000), ("implicit", 10**9)])
def test_products_are_those_of_the_dense_matrices(
    comm: Communicator, grid: Any, sizes: Any, loss: str, jacobian: str, limit: int
) -> None:
    flat, matrix = dense(sizes, loss, "sigmoid")
    objective = on_grid(
        comm, grid, sizes, loss, "sigmoid", weight_decay=DECAY, micro_batch=2, jacobian=jacobian, memory_limit=limit
    )
    mine = positions(objective.partition, comm.rank)
    linear = objective.linearize(start(sizes)[mine], BATCH)
    v, other = start(sizes, 8), start(sizes, 9)
    u = other[: len(flat)]
    torch.testing.assert_close(linear.jvp(v[mine]).reshape(-1), flat @ v, **CLOSE)
    torch.testing.assert_close(gathered(objective, linear.vjp(u.view(5, -1))), flat.T @ u, **CLOSE)
    torch.testing.assert_close(gathered(objective, linear.gauss_newton(v[mine])), matrix @ v, **CLOSE)
    curvatures = linear.curvatures(torch.stack([v[mine], other[mine]]))
    stacked = torch.stack([v, other])
    torch.testing.assert_close(curvatures, stacked @ matrix @ stacked.T, rtol=1e-12, atol=1e-12)
    assert comm.allgather_objects(curvatures.tolist()) == [curvatures.tolist()] * comm.size
    objective.free()


@pytest.mark.parametrize("jacobian", ["explicit", "implicit"])
def test_curvatures_are_the_same_where_ranks_round_differently(
    comm: Communicator, grid: Any, jacobian: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Branches are taken on them, and processors of different kinds sum in different orders."""
    exact = vectors.inner
    monkeypatch.setattr(vectors, "inner", lambda x, y: exact(x, y) * (1 + comm.rank * 2.0**-40))
    objective = on_grid(comm, grid, SIZES[0], weight_decay=DECAY, jacobian=jacobian)
    mine = positions(objective.partition, comm.rank)
    curvatures = objective.linearize(start(SIZES[0])[mine], BATCH).curvatures(start(SIZES[0], 8)[mine][None])
    assert comm.allgather_objects(curvatures.tolist()) == [curvatures.tolist()] * comm.size
    objective.free()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_block_needs_no_other_rank(comm: Communicator, grid: Any, sizes: Any) -> None:
    """Only rank 0 computes; the others wait for it in a barrier, so that a message would hang."""
    matrix = dense(sizes, "cross_entropy", "sigmoid")[1]
    objective = on_grid(comm, grid, sizes, "cross_entropy", "sigmoid", weight_decay=DECAY)
    mine = positions(objective.partition, comm.rank)
    linear, v = objective.linearize(start(sizes)[mine], BATCH), start(sizes, 8)[mine]
    if comm.rank == 0:
        torch.testing.assert_close(linear.block_product(v), matrix[mine][:, mine] @ v, **CLOSE)
    comm.barrier()
    objective.free()


@pytest.mark.parametrize("limit", [10**9, 2000])
def test_beside_rounded_factors_there_are_products_without_the_rounding(
    comm: Communicator, grid: Any, limit: int
) -> None:
    sizes, loss = SIZES[0], "cross_entropy"
    matrix = dense(sizes, loss, "sigmoid")[1]
    given = {"weight_decay": DECAY, "factors": "bfloat16", "memory_limit": limit}
    objective = on_grid(comm, grid, sizes, loss, "sigmoid", **given)
    mine, v = positions(objective.partition, comm.rank), start(sizes, 8)
    linear = objective.linearize(start(sizes)[mine], BATCH)
    assert isinstance(linear, ExplicitLinearization)
    assert linear.exact is not None
    products = [gathered(objective, each.gauss_newton(v[mine])) for each in (linear, linear.exact)]
    rounded, exact = ((product - matrix @ v).norm() / (matrix @ v).norm() for product in products)
    assert rounded > 1e-6
    assert exact < 1e-12
    objective.free()
