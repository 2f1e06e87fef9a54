"""The curvature of whole models in Kronecker factors: of which samples, in which draws, and at which cost."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.objective.curvature.fisher import OutputErrors
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Batch
from tests.support.factors import factors, numbers, objective_of
from tests.support.problems import sharded, small_network


@pytest.fixture
def unit_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors whose second moment is the identity exactly when the samples are a multiple of the outputs."""

    def draw(_: OutputErrors, outputs: torch.Tensor, targets: torch.Tensor, first: int) -> torch.Tensor:
        flat = outputs.detach().flatten(1)
        place = torch.arange(first, first + len(flat)) % flat.shape[1]
        return functional.one_hot(place, flat.shape[1]).to(flat).mul(math.sqrt(flat.shape[1])).view(outputs.shape)

    monkeypatch.setattr(OutputErrors, "draw", draw)


@pytest.mark.usefixtures("unit_errors")
@pytest.mark.parametrize("bias", [True, False])
def test_of_one_linear_layer_with_squared_loss_the_product_is_the_gauss_newton_matrix(
    comm: Communicator, bias: bool
) -> None:
    objective = objective_of(comm, nn.Linear(4, 3, bias=bias), numbers(12, 4))
    ((a, g),), others = factors(objective)
    assert len(others) == 0
    linear = objective.linearize(objective.initial_vector(), objective.full_batch)
    dense = torch.stack([linear.gauss_newton(v) for v in torch.eye(objective.size, dtype=torch.float64)])
    # w has the rows of the weight and then the biases; the product has the constant as a last input of each output
    order = torch.arange(12).view(3, 4)
    if bias:
        order = torch.cat([order, torch.arange(12, 15)[:, None]], 1)
    order = order.flatten()
    torch.testing.assert_close(torch.kron(g, a), dense[order][:, order], rtol=1e-12, atol=1e-12)


def test_running_statistics_and_gradients_are_left_alone(comm: Communicator) -> None:
    objective = sharded(comm, model=small_network(batch_norm=True))
    before = objective.model.copy_buffers()
    factors(objective)
    assert all(map(torch.equal, before, objective.model.copy_buffers()))
    assert all(p.grad is None for p in objective.shard.module.parameters())


def test_a_single_sample_that_batch_normalisation_would_refuse_is_left_out(comm: Communicator) -> None:
    objective = sharded(comm, model=small_network(batch_norm=True))
    found, diagonal = factors(objective, Batch(torch.tensor([3]), 1, 1))
    assert all(not a.any() and not g.any() for a, g in found)
    assert not diagonal.any()


class Scale(nn.Module):
    """Each input times a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.tensor([[1.0, 2.0], [0.5, 3.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factors.flatten()


@pytest.mark.parametrize("fisher", ["true", "empirical"])
def test_the_diagonal_of_the_others_is_in_the_mean_the_second_moment_of_their_gradients(
    comm: Communicator, fisher: str
) -> None:
    x = numbers(9, 4)
    objective = objective_of(comm, Scale(), x, "cross_entropy")
    draws = torch.stack([factors(objective, fisher=fisher, number=number)[1] for number in range(400)])
    p = Scale().double()(x).softmax(1).detach()
    e = p.clone()
    e[:, 0] -= 1  # all targets are 0
    each = (x.square() * (p * (1 - p) if fisher == "true" else e.square())).mean(0)
    rows = each.view(2, 2).mean(1).repeat_interleave(2)
    torch.testing.assert_close(draws.mean(0), rows, rtol=0.25, atol=0)
    assert torch.equal(draws[:, 0], draws[:, 1])


def test_activations_in_place_change_nothing(comm: Communicator) -> None:
    found = []
    for inplace in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace), nn.Linear(6, 3), nn.ReLU(inplace))
        found.append(factors(objective_of(comm, model, numbers(8, 4))))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


def test_micro_batches_change_nothing_but_rounding(comm: Communicator) -> None:
    found = [factors(sharded(comm, micro_batch=size)) for size in (None, 5)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


def test_the_mean_is_over_the_samples_of_the_batch(comm: Communicator) -> None:
    objective = sharded(comm)
    chosen = torch.tensor([1, 4, 30])
    (first, _), _ = factors(objective, Batch(chosen, 3, 3))
    rows = torch.cat([objective.shard.inputs[chosen], torch.ones(3, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(first[0], rows.T @ rows / 3, rtol=1e-12, atol=1e-12)


def test_the_work_is_that_of_the_products_made(comm: Communicator) -> None:
    objective = sharded(comm)
    factors(objective, Batch(torch.arange(10), 10, 10))
    # a, o = 6, 7 and 8, 3: forward and back to the outputs, and both factors, over three passes
    expected = (4 * (42 + 24) / 2 + 36 + 49 + 64 + 9) / (3 * (42 + 24))
    assert objective.work.gradients == pytest.approx(10 / 37 * expected)
    assert objective.work.values == objective.work.curvature_products == 0


def test_targets_that_cannot_be_drawn_are_refused_at_once(comm: Communicator) -> None:
    objective = DataParallelObjective(nn.Linear(2, 200), nn.HuberLoss(), numbers(3, 2), numbers(3, 200), comm)
    with pytest.raises(UsageError, match="200 outputs"):
        objective.kronecker.check("true")
    objective.kronecker.check("empirical")
