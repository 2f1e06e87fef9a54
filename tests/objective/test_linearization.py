"""Jacobian and Gauss-Newton products against dense matrices in float64."""

from __future__ import annotations

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Batch
from tests.support.problems import CLASSES, sharded, small_network


def dense_jacobian(objective: DataParallelObjective, w: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Row (i, c): gradient of output c of sample i, by finite central differences of order 4."""
    shard, h, columns = objective.shard, 1e-3, []
    inputs = torch.cat([x for x, _ in shard.chunks(batch)])

    def outputs(vector: torch.Tensor) -> torch.Tensor:
        shard.parameters.bind(vector.contiguous())
        with torch.no_grad():
            return shard.module(inputs).reshape(-1)  # type: ignore[no-any-return]

    for e in torch.eye(len(w), dtype=w.dtype):
        far = outputs(w + 2 * h * e) - outputs(w - 2 * h * e)
        columns.append((8 * (outputs(w + h * e) - outputs(w - h * e)) - far) / (12 * h))
    return torch.stack(columns, dim=1)


def dense_hessian(loss: str, outputs: torch.Tensor) -> torch.Tensor:
    """Hessian of the loss in output space, one block a sample."""
    if loss == "squared":
        return torch.eye(outputs.numel(), dtype=outputs.dtype)
    p = outputs.softmax(1)
    return torch.block_diag(*(torch.diag(row) - torch.outer(row, row) for row in p))


@pytest.fixture(params=["cross_entropy", "squared"])
def loss(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_products_are_those_of_the_dense_matrices(comm: Communicator, loss: str, micro_batch: int | None) -> None:
    objective = sharded(comm, loss, weight_decay=0.01, micro_batch=micro_batch)
    w = objective.initial_vector()
    batch = Batch(torch.tensor([1, 5, 8, 9, 30]), 5, 5)
    linear = objective.linearize(w, batch)
    jacobian = dense_jacobian(objective, w, batch)
    v = torch.randn(len(w), generator=torch.Generator().manual_seed(3), dtype=w.dtype)
    u = torch.randn(5, CLASSES, generator=torch.Generator().manual_seed(4), dtype=w.dtype)
    torch.testing.assert_close(linear.jvp(v).reshape(-1), jacobian @ v, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(linear.vjp(u), jacobian.T @ u.reshape(-1), rtol=1e-8, atol=1e-9)
    inputs = torch.cat([x for x, _ in objective.shard.chunks(batch)])
    hessian = dense_hessian(loss, small_network()(inputs).detach())
    expected = jacobian.T @ (hessian @ (jacobian @ v)) / 5 + 0.01 * v
    torch.testing.assert_close(linear.gauss_newton(v), expected, rtol=1e-7, atol=1e-9)


def test_the_adjoint_passes_the_dot_test(comm: Communicator, loss: str) -> None:
    objective = sharded(comm, loss)
    linear = objective.linearize(objective.initial_vector(), objective.full_batch)
    v = torch.randn(objective.size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    tangents = linear.jvp(v)
    u = torch.randn(tangents.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    assert float((tangents * u).sum()) == pytest.approx(objective.dot(v, linear.vjp(u)), rel=1e-12)


def test_gauss_newton_is_symmetric_and_not_negative(comm: Communicator, loss: str) -> None:
    objective = sharded(comm, loss)
    linear = objective.linearize(objective.initial_vector(), objective.full_batch)
    x, y = torch.randn(2, objective.size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    one, other = objective.dot(x, linear.gauss_newton(y)), objective.dot(y, linear.gauss_newton(x))
    assert one == pytest.approx(other, rel=1e-11)
    assert objective.dot(x, linear.gauss_newton(x)) >= 0


def test_the_linearisation_stays_at_its_point_when_the_vector_moves_on(comm: Communicator) -> None:
    objective = sharded(comm)
    w = objective.initial_vector()
    linear, v = objective.linearize(w, objective.full_batch), torch.ones(objective.size, dtype=torch.float64)
    before = linear.gauss_newton(v)
    w.add_(1.0)
    objective.value(w, objective.full_batch)
    assert torch.equal(linear.gauss_newton(v), before)


def test_batch_normalisation_and_dropout_can_be_linearised(comm: Communicator) -> None:
    objective = sharded(comm, model=small_network(dropout=0.3, batch_norm=True))
    linear = objective.linearize(objective.initial_vector(), objective.full_batch)
    v = torch.ones(objective.size, dtype=torch.float64)
    assert torch.equal(linear.gauss_newton(v), linear.gauss_newton(v))


@pytest.mark.parametrize("micro_batch", [None, 10])
def test_all_products_see_the_dropout_masks_of_the_value(comm: Communicator, micro_batch: int | None) -> None:
    objective = sharded(comm, model=small_network(dropout=0.5), micro_batch=micro_batch)
    w, batch, h = objective.initial_vector(), objective.full_batch, 1e-5
    linear = objective.linearize(w, batch)
    x, y = torch.randn(2, objective.size, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    one, other = objective.dot(x, linear.gauss_newton(y)), objective.dot(y, linear.gauss_newton(x))
    assert one == pytest.approx(other, rel=1e-11)
    tangents = linear.jvp(x)
    u = torch.ones_like(tangents)
    assert float(tangents.sum()) == pytest.approx(objective.dot(x, linear.vjp(u)), rel=1e-11)
    slope = (objective.value(w + h * x, batch) - objective.value(w - h * x, batch)) / (2 * h)
    assert slope == pytest.approx(objective.dot(x, objective.value_and_gradient(w, batch)[1]), rel=1e-7)
