"""The local part of a block of the variables, against the whole gradient on one rank in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.objective.block_local import BlockLocalObjective
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Batch, Vector
from hpcopt.objective.shard import Part
from tests.support.problems import SAMPLES, sharded, small_network

BLOCKS = [(0, 1), (2, 3), (0, 3), (1,), (0, 1, 2, 3)]
"""Numbers of tensors: weight and bias of the first layer, of the second, ..."""

BATCHES = [Batch(None, SAMPLES, SAMPLES), Batch(torch.tensor([0, 3, 4, 11, 36]), 5, 9)]


def local_of(objective: DataParallelObjective, tensors: tuple[int, ...]) -> BlockLocalObjective:
    """The local part in which ``tensors`` may change."""
    return BlockLocalObjective(objective.shard, objective.decay, objective.samples, tensors)


def moved(local: BlockLocalObjective, w: Vector, by: float) -> Vector:
    """``w`` with the block's variables moved."""
    generator = torch.Generator().manual_seed(5)
    return w + by * local.put(torch.randn(len(local.take(w)), generator=generator, dtype=w.dtype))


@pytest.mark.parametrize("tensors", BLOCKS)
@pytest.mark.parametrize("batch", BATCHES, ids=["full", "mini"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("micro_batch", [None, 4])
def test_loss_and_gradient_are_those_of_the_whole_where_only_the_block_has_moved(
    comm: Communicator, tensors: tuple[int, ...], batch: Batch, decay: float, micro_batch: int | None
) -> None:
    objective = sharded(comm, weight_decay=decay, micro_batch=micro_batch)
    local, w = local_of(objective, tensors), objective.initial_vector() + 0.1
    local.begin(w)
    there = moved(local, w, 0.5)
    value, gradient = local.value_and_gradient(local.take(there), batch)
    expected, whole = objective.local.value_and_gradient(there, batch)
    assert value == pytest.approx(expected, rel=1e-14)
    torch.testing.assert_close(gradient, local.take(whole), rtol=1e-13, atol=1e-15)
    assert local.value(local.take(there), batch) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("tensors", BLOCKS)
def test_the_gradient_agrees_with_finite_differences(comm: Communicator, tensors: tuple[int, ...]) -> None:
    objective = sharded(comm, weight_decay=0.1)
    local, batch = local_of(objective, tensors), objective.full_batch
    w = objective.initial_vector()
    local.begin(w)
    x = local.take(moved(local, w, 0.3))
    _, gradient = local.value_and_gradient(x, batch)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    h = 1e-6
    slope = (local.value(x + h * direction, batch) - local.value(x - h * direction, batch)) / (2 * h)
    assert slope == pytest.approx(float(gradient @ direction), rel=1e-7)


@pytest.mark.parametrize("tensors", BLOCKS)
def test_put_is_the_adjoint_of_take_and_both_are_copies(comm: Communicator, tensors: tuple[int, ...]) -> None:
    objective = sharded(comm)
    local = local_of(objective, tensors)
    vector = torch.randn(objective.size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    own = torch.randn(len(local.take(vector)), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert float(local.take(vector) @ own) == pytest.approx(float(vector @ local.put(own)), rel=1e-14)
    assert torch.equal(local.take(local.put(own)), own)
    kept = vector.clone()
    local.take(vector).zero_()
    local.put(own).zero_()
    assert torch.equal(vector, kept)
    assert float(own.abs().min()) > 0


def test_other_variables_stay_where_the_phase_began_and_the_anchor_is_left_alone(comm: Communicator) -> None:
    objective = sharded(comm)
    local, w = local_of(objective, (2, 3)), objective.initial_vector()
    kept = w.clone()
    for shift in (0.0, 1.0):
        anchor = w + shift
        local.begin(anchor)
        x = local.take(w) - 0.5
        expected = objective.local.value(anchor - local.put(local.take(anchor)) + local.put(x), objective.full_batch)
        assert local.value(x, objective.full_batch) == pytest.approx(expected, rel=1e-14)
        assert torch.equal(anchor, kept + shift)


class Watched(torch.autograd.Function):
    """The identity, which counts its backward passes."""

    passed = 0

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        Watched.passed += 1
        return gradients[0]


class Watch(torch.nn.Module):
    """Lets everything through, and sees gradients on their way to the layers below."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Watched.apply(x)


@pytest.mark.parametrize(("tensors", "passes"), [((2, 3), 0), ((0, 1), 1), ((0, 1, 2, 3), 1)])
def test_the_backward_pass_ends_at_the_lowest_layer_of_the_block(
    comm: Communicator, tensors: tuple[int, ...], passes: int
) -> None:
    network = small_network()
    network.insert(1, Watch())
    objective = sharded(comm, model=network)
    local, w = local_of(objective, tensors), objective.initial_vector()
    local.begin(w)
    Watched.passed = 0
    local.value_and_gradient(local.take(w), objective.full_batch)
    assert Watched.passed == passes


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"batch_norm": True}])
def test_in_the_parts_of_several_ranks_masks_and_statistics_are_those_of_these_ranks(
    comm: Communicator, options: dict[str, Any]
) -> None:
    objective = sharded(comm, model=small_network(**options))
    parts = [Part(number, 3, rank=number) for number in range(3)]
    w, batch = objective.initial_vector(), Batch(torch.arange(0, SAMPLES, 2), 19, 19)
    sums = [objective.shard.with_parts([part]).loss_sum(w, batch) for part in parts]
    assert objective.shard.with_parts(parts).loss_sum(w, batch) == pytest.approx(sum(sums), rel=1e-14)
    assert objective.shard.loss_sum(w, batch) != pytest.approx(sum(sums), rel=1e-6)
    assert objective.shard.stochastic.by_piece


def test_a_model_without_them_needs_no_parts(comm: Communicator) -> None:
    assert not sharded(comm).shard.stochastic.by_piece


def test_a_gradient_of_a_block_is_counted_as_a_whole_one(comm: Communicator) -> None:
    objective = sharded(comm)
    local, w = local_of(objective, (2, 3)), objective.initial_vector()
    local.begin(w)
    local.value_and_gradient(local.take(w), objective.full_batch)
    local.value(local.take(w), objective.full_batch)
    work = local.take_work()
    assert (work.gradients, work.values) == (1, 1)
    assert local.take_work().gradients == 0


def test_without_samples_only_the_weight_decay_is_left(comm: Communicator) -> None:
    objective = sharded(comm, weight_decay=0.5)
    local, w = local_of(objective, (0, 1)), objective.initial_vector()
    local.begin(w)
    value, gradient = local.value_and_gradient(local.take(w), Batch(torch.arange(0), 0, 9))
    assert value == pytest.approx(0.25 * float(w @ w), rel=1e-14)
    torch.testing.assert_close(gradient, 0.5 * local.take(w))
