"""Jacobian and Gauss-Newton products against dense matrices in float64."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.linearization import ImplicitLinearization, KeptPiece, RepeatedPiece
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


def directions(objective: DataParallelObjective, count: int = 2) -> torch.Tensor:
    """Some directions (count, n)."""
    generator = torch.Generator().manual_seed(9)
    return torch.randn(count, objective.size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("count", [1, 3])
def test_curvatures_are_those_of_the_dense_matrix(
    comm: Communicator, loss: str, micro_batch: int | None, count: int
) -> None:
    objective = sharded(comm, loss, weight_decay=0.3, micro_batch=micro_batch)
    w, batch = objective.initial_vector(), Batch(torch.tensor([1, 5, 8, 9, 30]), 5, 5)
    jacobian, d = dense_jacobian(objective, w, batch), directions(objective, count)
    inputs = torch.cat([x for x, _ in objective.shard.chunks(batch)])
    hessian = dense_hessian(loss, small_network()(inputs).detach())
    matrix = jacobian.T @ hessian @ jacobian / 5 + 0.3 * torch.eye(len(w), dtype=w.dtype)
    torch.testing.assert_close(objective.linearize(w, batch).curvatures(d), d @ matrix @ d.T, rtol=1e-8, atol=1e-9)
    assert objective.work.curvature_products == pytest.approx(count / 2 * 5 / objective.samples)


class Attention(torch.nn.Module):
    """Five features as five tokens, one head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = torch.nn.Linear(1, 4), torch.nn.Linear(4, CLASSES)
        self.attend = torch.nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x[:, :, None])
        return self.head(self.attend(tokens, tokens, tokens, need_weights=False)[0].mean(1))


class PartlyUsed(torch.nn.Module):
    """A layer that takes no part in the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = torch.nn.Linear(5, CLASSES), torch.nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


MODELS = {
    "plain": small_network,
    "random": lambda: small_network(dropout=0.3, batch_norm=True),
    "convolution": lambda: torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, 5)), torch.nn.Conv1d(1, 3, 2), torch.nn.ReLU(), torch.nn.MaxPool1d(2),
        torch.nn.Flatten(), torch.nn.Linear(6, CLASSES),
    ),
    "partly used": PartlyUsed,
}  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("micro_batch", [None, 10])
def test_products_from_kept_graphs_are_those_of_forward_mode(
    comm: Communicator, model: str, micro_batch: int | None
) -> None:
    torch.manual_seed(0)
    objective = sharded(comm, model=MODELS[model]().double(), micro_batch=micro_batch)
    w, batch, d = objective.initial_vector(), objective.full_batch, directions(objective)
    kept = ImplicitLinearization(objective, w, batch)
    repeated = ImplicitLinearization(objective, w, batch, graph_bytes=0)
    assert {type(piece) for piece, _ in kept._pieces} == {KeptPiece}
    assert {type(piece) for piece, _ in repeated._pieces} == {RepeatedPiece}
    u = kept.jvp(d[0])
    torch.testing.assert_close(u, repeated.jvp(d[0]), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(kept.vjp(u), repeated.vjp(u), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(kept.gauss_newton(d[0]), repeated.gauss_newton(d[0]), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(kept.curvatures(d), repeated.curvatures(d), rtol=1e-10, atol=1e-12)


class Square(torch.autograd.Function):
    """x^2, which can be differentiated backward twice and not forward."""

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return 2 * ctx.saved_tensors[0] * gradient


class SquareForward(Square):
    """Forward too, but only in one direction at a time."""

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor) -> torch.Tensor:
        return 2 * ctx.saved_tensors[0] * tangent


class Squares(torch.nn.Module):
    """An activation by one of these functions."""

    def __init__(self, function: type[Square]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.function.apply(x))


def replaced(module: torch.nn.Module) -> torch.nn.Sequential:
    """The network of ``small_network`` with another activation."""
    network = small_network()
    network[1] = module
    return network


@pytest.mark.parametrize(
    ("model", "mode"),
    [
        *((make, "stacked") for make in MODELS.values()),
        (Attention, "stacked"),
        (lambda: replaced(torch.nn.ReLU(inplace=True)), "stacked"),
        (lambda: replaced(Squares(SquareForward)), "each"),
        (lambda: replaced(Squares(Square)), ""),
    ],
    ids=[*MODELS, "attention", "in place", "one direction at a time", "no forward mode"],
)
@pytest.mark.parametrize("micro_batch", [None, 10])
def test_curvatures_by_forward_mode_are_those_from_graphs(
    comm: Communicator, model: Callable[[], torch.nn.Module], mode: str, micro_batch: int | None
) -> None:
    torch.manual_seed(0)
    objective = sharded(comm, model=model().double(), micro_batch=micro_batch, weight_decay=0.1)
    w, batch, d = objective.initial_vector(), objective.full_batch, directions(objective)
    forward, graphs = objective.linearize(w, batch), objective.linearize(w, batch)
    graphs.gauss_newton(w)
    before = objective.work.values
    for _ in range(2):
        torch.testing.assert_close(forward.curvatures(d), graphs.curvatures(d), rtol=1e-10, atol=1e-12)
        assert objective.forward_mode == mode
    assert (forward._made is None) == bool(mode)
    assert objective.work.values == before + (2 if mode else 1) + (not mode)
    torch.testing.assert_close(forward.gauss_newton(d[0]), graphs.gauss_newton(d[0]))


def test_all_directions_are_carried_by_one_forward_pass(comm: Communicator) -> None:
    objective, calls = sharded(comm), []
    objective.shard.module.register_forward_hook(lambda *_: calls.append(1))
    objective.linearize(objective.initial_vector(), objective.full_batch).curvatures(directions(objective, 3))
    assert calls == [1]


def test_attention_can_be_linearised(comm: Communicator) -> None:
    objective = sharded(comm, model=Attention().double())
    linear = objective.linearize(objective.initial_vector(), objective.full_batch)
    x, y = directions(objective)
    one, other = objective.dot(x, linear.gauss_newton(y)), objective.dot(y, linear.gauss_newton(x))
    assert one == pytest.approx(other, rel=1e-10)


def test_normalisation_by_statistics_that_stay_can_be_linearised(comm: Communicator) -> None:
    objective = sharded(comm, model=small_network(batch_norm=True))
    objective.shard.module.train()[2].eval()
    w, batch, d = objective.initial_vector(), objective.full_batch, directions(objective)
    linear = objective.linearize(w, batch)
    objective.value(w + 0.1, batch)
    repeated = ImplicitLinearization(objective, w, batch, graph_bytes=0)
    torch.testing.assert_close(linear.gauss_newton(d[0]), repeated.gauss_newton(d[0]), rtol=1e-10, atol=1e-12)


def test_the_model_is_not_evaluated_again_for_another_product(comm: Communicator) -> None:
    objective = sharded(comm)
    linear, calls = objective.linearize(objective.initial_vector(), objective.full_batch), []
    linear.gauss_newton(directions(objective)[0])
    objective.shard.module.register_forward_hook(lambda *_: calls.append(1))
    linear.gauss_newton(directions(objective)[0])
    linear.curvatures(directions(objective))
    assert calls == []


def test_what_graphs_take_is_estimated_once(comm: Communicator) -> None:
    objective, calls = sharded(comm), []
    objective.shard.module.register_forward_hook(lambda *_: calls.append(1))
    for number in range(1, 4):
        objective.linearize(objective.initial_vector(), objective.full_batch).gauss_newton(directions(objective)[0])
        assert len(calls) == 1 + number


def test_no_more_graphs_are_kept_than_there_is_memory_for(comm: Communicator) -> None:
    objective = sharded(comm, micro_batch=10)
    w, batch = objective.initial_vector(), objective.full_batch
    each = ImplicitLinearization(objective, w, batch)._bytes_a_sample(objective.shard.inputs)
    linear = ImplicitLinearization(objective, w, batch, graph_bytes=int(25 * each))
    assert [type(piece) for piece, _ in linear._pieces] == [KeptPiece, KeptPiece, RepeatedPiece, RepeatedPiece]
    # Inputs and outputs of the first layer, of the activation and of the last one, in both graphs, in float64.
    assert 2 * 8 * (5 + 7 + CLASSES) <= each <= 2 * 8 * 2 * (5 + 7 + 7 + CLASSES)


def test_a_product_is_a_new_vector(comm: Communicator) -> None:
    objective = sharded(comm)
    linear, v = objective.linearize(objective.initial_vector(), objective.full_batch), directions(objective)[0]
    expected = linear.gauss_newton(v).clone()
    linear.gauss_newton(v).fill_(torch.nan)
    assert torch.equal(linear.gauss_newton(v), expected)


@pytest.mark.parametrize("kept", [0, 25, 100])
def test_graphs_go_with_the_linearisation_and_do_not_wait_for_the_collector(comm: Communicator, kept: int) -> None:
    objective = sharded(comm, micro_batch=10)
    w, batch = objective.initial_vector(), objective.full_batch
    each = ImplicitLinearization(objective, w, batch)._bytes_a_sample(objective.shard.inputs)
    gc.collect()
    gc.disable()
    try:
        linear = ImplicitLinearization(objective, w, batch, graph_bytes=int(kept * each))
        linear.gauss_newton(directions(objective)[0])
        gone = [weakref.ref(piece) for piece, _ in linear._pieces]
        del linear
        assert [piece() for piece in gone] == [None] * 4
    finally:
        gc.enable()
