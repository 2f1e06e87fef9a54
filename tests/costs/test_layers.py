from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hpcopt.costs.layers import Layer, layers_of, network_layers

MODELS = {
    "dense": (nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3)), (3, 4)),
    "sequence": (nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Flatten(), nn.Linear(18, 2)), (3, 4)),
    "convolution": (
        nn.Sequential(nn.Conv2d(2, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 2, groups=2)),
        (2, 9, 9),
    ),
    "decoder": (nn.Sequential(nn.ConvTranspose2d(3, 2, 4, stride=2, padding=1)), (3, 5, 5)),
}


@pytest.mark.parametrize("name", MODELS)
def test_products_have_the_operations_that_torch_counts(name: str) -> None:
    model, shape = MODELS[name]
    inputs = torch.randn(2, *shape)
    layers = layers_of(model, inputs)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(inputs)
    assert 2 * sum(2 * each.rows * each.inputs * each.outputs for each in layers) == counter.get_total_flops()


def test_what_is_no_product_counts_by_what_it_reads_and_writes_and_a_view_by_nothing() -> None:
    model, shape = MODELS["dense"]
    first, activation, last = layers_of(model, torch.randn(2, *shape))
    assert activation == Layer(0.0, 0, 0, 5.0, 5.0)
    assert (first.read, first.written, last.written) == (12.0, 5.0, 3.0)


def test_the_model_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layers_of(model, torch.randn(4, 3))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[0]._forward_hooks


def test_a_part_of_a_network_has_an_activation_behind_each_layer_but_the_last() -> None:
    assert network_layers([(4, 3), (6, 2)]) == [
        Layer(1.0, 4, 3, 4, 3),
        Layer(0.0, 0, 0, 3, 3),
        Layer(1.0, 6, 2, 6, 2),
    ]
