"""The last layer as a matrix times a design: against the layer itself, column by column, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hpcopt.errors import UsageError
from hpcopt.objective.parameters import FlatParameters
from hpcopt.objective.separable.last_layer import LastLayer

BATCH, SCALE = 2, 0.5
LAYERS: dict[str, tuple[nn.Module, int]] = {
    "linear": (nn.Linear(6, 3), 1),
    "linear at every place": (nn.Linear(6, 2, bias=False), 1),
    "convolution": (nn.Conv2d(2, 3, 3, padding=1), 1),
    "strided convolution": (nn.Conv2d(2, 1, (3, 2), stride=(2, 1), padding=(2, 0), dilation=(1, 2), bias=False), 1),
    "same size": (nn.Conv2d(2, 2, 3, padding="same"), 1),
    "decoder": (nn.ConvTranspose2d(2, 3, 4, stride=2, padding=1), 4),
    "no bias": (nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1, bias=False), 4),
    "odd kernel": (nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1), 4),
    "stride of one": (nn.ConvTranspose2d(2, 2, 3, padding=2), 1),
    "unlike axes": (nn.ConvTranspose2d(2, 2, (5, 3), stride=(3, 1), padding=(1, 0)), 3),
    "outputs that see nothing": (nn.ConvTranspose2d(2, 2, 2, stride=3, output_padding=1), 9),
    "dilation": (nn.ConvTranspose2d(2, 2, 3, stride=2, dilation=(3, 2), padding=(2, 0)), 4),
    "many channels": (nn.ConvTranspose2d(16, 2, 4, stride=2, padding=1), 4),
}


def made(name: str) -> tuple[nn.Module, LastLayer, torch.Tensor, torch.Tensor]:
    """The layer behind another one, its description, W (t, m), and what the layer gets."""
    torch.manual_seed(0)
    layer = LAYERS[name][0].double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    shape = (BATCH, 5, 6) if name == "linear at every place" else (BATCH, 6)
    if not isinstance(layer, nn.Linear):
        shape = BATCH, layer.in_channels, 5, 4
    features = torch.randn(shape, dtype=torch.float64)
    parameters = FlatParameters(nn.Sequential(nn.Tanh(), layer), torch.float64, torch.device("cpu"))
    described = LastLayer(nn.Sequential(nn.Tanh(), layer, nn.Flatten()), parameters)
    seen = described.features(features)
    assert torch.equal(seen, features.tanh())
    return layer, described, described.weights(parameters.copy()), seen


def dense_design(layer: nn.Module, described: LastLayer, seen: torch.Tensor) -> torch.Tensor:
    """Z^T (rows, m): a column is the response of the first output to a weight of 1."""
    columns = []
    for number in range(described.width):
        unit = torch.zeros(described.outputs, described.width, dtype=torch.float64)
        unit[0, number] = 1
        outputs = described.outputs_of(seen, unit)
        first = outputs[..., 0] if isinstance(layer, nn.Linear) else outputs[:, 0]
        columns.append(first.reshape(-1))
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("name", LAYERS)
def test_its_outputs_are_the_design_times_the_weights(name: str) -> None:
    """Where the targets are the outputs no row has a residual, and every output is in one row of one block."""
    layer, described, weights, seen = made(name)
    outputs = layer(seen).detach()
    assert torch.equal(described.outputs_of(seen, weights).detach(), outputs)
    parts = list(described.rows(seen, outputs.flatten(1), weights, SCALE))
    for part in parts:
        assert float(part.residual.abs().max()) < 1e-13
    assert sum(part.residual.numel() for part in parts) == outputs.numel()
    assert described.positions * described.outputs * BATCH == outputs.numel()


@pytest.mark.parametrize("name", LAYERS)
def test_its_gram_matrix_falls_into_blocks(name: str) -> None:
    layer, described, weights, seen = made(name)
    outputs = layer(seen).detach()
    targets = torch.randn(outputs.shape, dtype=torch.float64)
    gram = torch.zeros(described.width, described.width, dtype=torch.float64)
    cross, square = torch.zeros(described.outputs, described.width, dtype=torch.float64), 0.0
    for blocks, design, residual in described.rows(seen, targets, weights, SCALE):
        for block, right in zip(blocks, residual.split(described.outputs, dim=1), strict=True):
            columns = described.blocks[block]
            gram[columns[:, None], columns] += design.T @ design
            cross[:, columns] += right.T @ design
        square += float(residual.square().sum())
    assert len(described.blocks) == LAYERS[name][1]
    if len(described.blocks) == 1:  # then W is taken as it is
        assert described.blocks[0].tolist() == list(range(described.width))
    dense, at_end = dense_design(layer, described, seen), isinstance(layer, nn.Linear)
    wanted = SCALE * (outputs - targets).movedim(-1 if at_end else 1, 0).reshape(described.outputs, -1)
    exact = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(gram, SCALE**2 * dense.T @ dense, **exact)
    torch.testing.assert_close(cross, SCALE * wanted @ dense, **exact)
    assert square == pytest.approx(float(wanted.square().sum()), rel=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_its_loss_and_the_gradient_in_its_features_are_those_of_autograd(name: str) -> None:
    _, described, weights, seen = made(name)
    seen = seen.detach().requires_grad_()
    outputs = described.outputs_of(seen, weights)
    targets = torch.randn(outputs.shape, dtype=torch.float64)
    expected = (outputs - targets).square().sum() / 2
    (gradient,) = torch.autograd.grad(expected, seen)
    loss, cotangent = described.loss_and_cotangent(seen, targets.flatten(1), weights, SCALE)
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-12)
    torch.testing.assert_close(cotangent, SCALE * gradient, rtol=1e-12, atol=1e-12)


def test_rows_that_two_blocks_share_are_made_once() -> None:
    """In a decoder, about as many as there are inputs, not outputs, which are four times as many."""
    _, described, weights, seen = made("decoder")
    parts = list(described.rows(seen, torch.zeros(BATCH, 3 * 10 * 8, dtype=torch.float64), weights, SCALE))
    assert sum(len(part.design) for part in parts) == BATCH * (5 + 1) * (4 + 1)


@pytest.mark.parametrize("name", LAYERS)
def test_weights_are_written_where_they_were_read(name: str) -> None:
    layer, described, weights, _ = made(name)
    vector = torch.zeros(sum(p.numel() for p in layer.parameters()), dtype=torch.float64)
    described.put(vector, weights)
    assert torch.equal(vector, torch.cat([p.detach().reshape(-1) for p in layer.parameters()]))


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.Conv2d(2, 2, 3, groups=2), "groups = 2"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), "padding_mode = 'circular'"),
        (nn.Conv2d(2, 2, 2, padding="same"), "padding = 'same'"),
        (nn.ConvTranspose2d(2, 2, 3, groups=2), "groups = 2"),
        (nn.Conv1d(2, 2, 3), "is Conv1d"),
    ],
)
def test_other_layers_are_refused(layer: nn.Module, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        LastLayer(layer, FlatParameters(layer, torch.float64, torch.device("cpu")))


@pytest.mark.parametrize("after", [nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Upsample(scale_factor=2)])
def test_what_comes_after_it_may_not_change_its_outputs(after: nn.Module) -> None:
    module: Any = nn.Sequential(nn.Conv2d(2, 2, 3), after)
    described = LastLayer(module, FlatParameters(module, torch.float64, torch.device("cpu")))
    with pytest.raises(UsageError, match="does not make the outputs"):
        described.features(torch.randn(1, 2, 4, 4, dtype=torch.float64))
