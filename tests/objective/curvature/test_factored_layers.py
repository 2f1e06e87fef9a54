"""Which layers of a model have Kronecker factors, and what stands in them: sums over samples and positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from hpcopt.comm.communicator import Communicator
from hpcopt.objective.curvature import factored_layers
from hpcopt.objective.curvature.fisher import OutputErrors
from tests.support.factors import factors, numbers, objective_of


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
