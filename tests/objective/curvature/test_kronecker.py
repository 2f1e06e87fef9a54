"""Kronecker factors of whole models against sums over samples and positions, and against dense Gauss-Newton blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.objective.curvature import factored_layers
from hpcopt.objective.curvature.fisher import OutputErrors
from hpcopt.objective.curvature.triangles import triangle_size, unpack
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Batch, Vector
from tests.support.problems import sharded, small_network

Factors = list[tuple[torch.Tensor, torch.Tensor]]


def factors(objective: DataParallelObjective, batch: Batch | None = None, **options: Any) -> tuple[Factors, Vector]:
    """A and G of every layer, and the diagonal of the other variables."""
    curvature = objective.kronecker
    options = {"fisher": "true", "number": 0} | options
    packed = curvature.begin(objective.initial_vector(), batch or objective.full_batch, **options).wait()
    assert packed.shape == (curvature.size,)
    found, start = [], 0
    for layer in curvature.layers:
        pair = []
        for order in (layer.inputs, layer.outputs):
            pair.append(unpack(packed[start : start + triangle_size(order)], order))
            start += triangle_size(order)
        found.append((pair[0], pair[1]))
    return found, packed[start:]


def objective_of(
    comm: Communicator, model: nn.Module, inputs: torch.Tensor, loss: str = "squared", **options: Any
) -> DataParallelObjective:
    """Of a model in float64, with targets of 0."""
    with torch.no_grad():
        outputs = model.double()(inputs)
    targets = torch.zeros_like(outputs) if loss == "squared" else torch.zeros(len(inputs), dtype=torch.int64)
    return DataParallelObjective(model, loss, inputs, targets, comm, **options)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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


def conv_factors(
    conv: nn.Conv2d, x: torch.Tensor, g: torch.Tensor, padding: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A and G by loops over samples and positions."""
    padded = functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    rows, gradients = [], []
    for i in range(len(x)):
        for r in range(g.shape[2]):
            for c in range(g.shape[3]):
                top, left = r * conv.stride[0], c * conv.stride[1]
                height = slice(top, top + conv.dilation[0] * (conv.kernel_size[0] - 1) + 1, conv.dilation[0])
                width = slice(left, left + conv.dilation[1] * (conv.kernel_size[1] - 1) + 1, conv.dilation[1])
                patch = padded[i, :, height, width].flatten()
                rows.append(torch.cat([patch, torch.ones(1, dtype=x.dtype)]) if conv.bias is not None else patch)
                gradients.append(g[i, :, r, c])
    a, g = torch.stack(rows), torch.stack(gradients)
    return a.T @ a / len(a), g.T @ g / len(x)


@pytest.mark.parametrize(
    ("options", "padding"),
    [
        ({"kernel_size": 3}, (0, 0)),
        ({"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "bias": False}, (1, 0)),
        ({"kernel_size": 3, "padding": "same", "dilation": 2}, (2, 2)),
        ({"kernel_size": 1, "padding": "valid"}, (0, 0)),
    ],
)
def test_of_a_convolution_patches_are_the_inputs_and_positions_are_summed_in_g(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], padding: tuple[int, int]
) -> None:
    monkeypatch.setattr(
        "hpcopt.objective.curvature.factored_layers.PATCH_NUMBERS", 500
    )  # so that patches come in pieces
    conv, x = nn.Conv2d(2, 3, **options), numbers(5, 2, 6, 5)
    objective = objective_of(comm, nn.Sequential(conv, nn.Flatten()), x)
    shape = conv(x).shape
    e = OutputErrors(objective.shard.loss, "true", 0, 0).draw(conv(x).flatten(1), objective.shard.targets, 0)
    ((a, g),), _ = factors(objective)
    expected = conv_factors(conv, x, e.view(shape), padding)
    torch.testing.assert_close((a, g), expected, rtol=1e-12, atol=1e-12)


def test_of_a_large_image_a_lattice_of_positions_is_enough_for_the_inputs(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv, x = nn.Conv2d(2, 3, 3, stride=(1, 2), padding=1), numbers(4, 2, 6, 12)
    objective = objective_of(comm, nn.Sequential(conv, nn.Flatten()), x)
    ((_, g),), _ = factors(objective)
    work = objective.work.gradients
    monkeypatch.setattr(
        "hpcopt.objective.curvature.factored_layers.POSITIONS", 9
    )  # of 6 by 6: every other row and column
    patches = functional.unfold(x, 3, 1, 1, (1, 2)).view(4, 18, 6, 6)
    lattices = [patches[:, :, top::2, left::2].transpose(0, 1).reshape(18, -1) for top in (0, 1) for left in (0, 1)]
    seen = set()
    for number in range(20):
        ((a, h),), _ = factors(objective, number=number)
        same = [torch.allclose(a[:18, :18], rows @ rows.T / 36, rtol=1e-12) for rows in lattices]
        assert sum(same) == 1
        assert float(a[18, 18]) == 1.0
        seen.add(same.index(True))
        if number == 0:
            torch.testing.assert_close(h, g, rtol=1e-12, atol=1e-12)
            assert objective.work.gradients - work == pytest.approx(work - 0.75 * 19**2 / (3 * 19 * 3))
    assert seen == {0, 1, 2, 3}


class Twice(nn.Module):
    """A layer that is called on two halves of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.layer(input=x[:, :4]), self.layer(x[:, 4:])], 1)


class Positions(nn.Module):
    """The same as a layer on two positions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.view(len(x), 2, 4)).flatten(1)


def test_calls_of_a_layer_count_as_positions(comm: Communicator) -> None:
    x, found = numbers(7, 8), []
    for kind in (Twice, Positions):
        torch.manual_seed(0)
        found.append(factors(objective_of(comm, kind(), x)))
    (((a, g),), _), (((b, h),), _) = found
    torch.testing.assert_close((a, g), (b, h), rtol=1e-12, atol=1e-12)
    rows = torch.cat([x.view(14, 4), torch.ones(14, 1, dtype=x.dtype)], 1)
    torch.testing.assert_close(a, rows.T @ rows / 14, rtol=1e-12, atol=1e-12)


class Tied(nn.Module):
    """An encoder whose transpose is the decoder, and two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.one, self.other = nn.Linear(4, 3), nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(self.encoder(self.other(self.one(x))), self.encoder.weight.T)


class Functional(nn.Module):
    """A layer that is never called, one that is called on the way to nothing, and one as usual."""

    def __init__(self) -> None:
        super().__init__()
        self.aside, self.lost, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.lost(x)
        return self.last(functional.linear(x, self.aside.weight, self.aside.bias))


class Attention(nn.Module):
    """Self-attention, whose output layer is a subclass of Linear that is never called, with a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(4, 2, batch_first=True), nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.attention(x, x, x)[0]).flatten(1)


class Words(nn.Module):
    """Numbers as words."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.last = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.embedding(x.abs().long().clamp(max=8)).mean(1))


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    model[2].weight.requires_grad_(False)  # type: ignore[union-attr]
    model[3].bias.requires_grad_(False)  # type: ignore[union-attr]
    return model


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    ("make", "shape", "orders", "others"),
    [
        (Tied, (6, 4), [], 16 + 4 + 4 + 12 + 3),
        (Functional, (6, 4), [(5, 2)], 16 + 4 + 16 + 4),
        (Attention, (6, 3, 4), [], 48 + 12 + 16 + 4 + 4 + 4),
        (Words, (6, 3), [(5, 2)], 36),
        (frozen, (6, 4), [(4, 2)], 4),
        (lambda: nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.Flatten()), (3, 2, 4, 4), [], 18 + 2),
        (lambda: nn.Sequential(nn.Conv2d(2, 2, 2, padding="same"), nn.Flatten()), (3, 2, 4, 4), [], 16 + 2),
        (lambda: nn.Sequential(nn.Conv2d(2, 2, 3, padding_mode="circular"), nn.Flatten()), (3, 2, 4, 4), [], 36 + 2),
        (lambda: nn.Sequential(nn.ConvTranspose2d(2, 2, 2), nn.Flatten()), (3, 2, 4, 4), [], 16 + 2),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)), (6, 4), [(5, 3), (4, 2)], 6),
    ],
)
def test_a_layer_that_is_no_kronecker_product_falls_back_to_the_diagonal(
    comm: Communicator,
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    orders: list[tuple[int, int]],
    others: int,
) -> None:
    torch.manual_seed(0)
    objective = objective_of(comm, make(), 3 * numbers(*shape))
    found, diagonal = factors(objective)
    assert [(layer.inputs, layer.outputs) for layer in objective.kronecker.layers] == orders
    assert [(len(a), len(g)) for a, g in found] == orders
    assert diagonal.shape == (others,)
    assert sum(each.stop - each.start for each in objective.kronecker.others) == others
    assert bool((diagonal >= 0).all())
    assert bool(diagonal.isfinite().all())


def test_a_layer_too_wide_for_its_squares_falls_back_to_the_diagonal(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factored_layers, "MOST_ORDER", 5)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 5, bias=False), nn.Linear(5, 2, bias=False))
    objective = objective_of(comm, model, numbers(6, 4))
    assert [(layer.inputs, layer.outputs) for layer in objective.kronecker.layers] == [(5, 5), (5, 2)]
    assert sum(each.stop - each.start for each in objective.kronecker.others) == 30 + 35


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
