"""The multilayer perceptron is what its options say."""

import math

import pytest
import torch
from torch import nn

from hpcopt.errors import UsageError
from hpcopt.models import build, count_parameters
from hpcopt.models.layers import ACTIVATIONS


def mlp(input_shape=(784,), outputs=10, **options):
    return build("mlp", options, input_shape, outputs, seed=3)


def kinds(model):
    return [type(layer).__name__ for layer in model]


def test_layers_follow_the_widths():
    model = mlp(widths=[512, 256], activation="tanh")
    assert kinds(model) == ["Flatten", "Linear", "Tanh", "Linear", "Tanh", "Linear"]
    assert count_parameters(model) == 784 * 512 + 512 + 512 * 256 + 256 + 256 * 10 + 10


def test_no_width_is_a_linear_model_and_no_bias_has_none():
    assert count_parameters(mlp(widths=[], bias=False)) == 7840


@pytest.mark.parametrize("shape", [(784,), (28, 28), (1, 28, 28)])
def test_samples_of_any_shape_are_flattened(shape):
    assert mlp(shape)(torch.zeros(3, *shape)).shape == (3, 10)


def test_no_sample_gives_no_output():
    assert mlp((28, 28))(torch.zeros(0, 28, 28)).shape == (0, 10)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_can_be_named(name):
    assert kinds(mlp(activation=name))[2].lower() == name


def test_dropout_follows_every_hidden_layer_and_only_when_asked_for():
    assert kinds(mlp(widths=[8, 8], dropout=0.5)).count("Dropout") == 2
    assert "Dropout" not in kinds(mlp(widths=[8, 8]))


@pytest.mark.parametrize(
    ("init", "hidden", "output"),
    [
        ("torch", 1 / math.sqrt(3 * 784), 1 / math.sqrt(3 * 512)),
        ("he", math.sqrt(2 / 784), math.sqrt(1 / 512)),
        ("xavier", math.sqrt(2 / (784 + 512)), math.sqrt(2 / (512 + 100))),
    ],
)
def test_initial_weights_have_the_standard_deviation_of_the_rule(init, hidden, output):
    first, last = [layer for layer in mlp(widths=[512], outputs=100, init=init) if isinstance(layer, nn.Linear)]
    assert float(first.weight.detach().std()) == pytest.approx(hidden, rel=0.02)
    assert float(last.weight.detach().std()) == pytest.approx(output, rel=0.02)
    assert bool((first.bias == 0).all()) == (init != "torch")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": [64, 0]}, r"model.widths = \[64, 0\], but it must be a list of whole numbers of at least 1"),
        ({"widths": 64}, "model.widths = 64"),
        ({"widths": [True]}, "model.widths"),
        ({"activation": "rellu"}, "model.activation = 'rellu'.* did you mean 'relu'"),
        ({"init": "kaiming"}, "model.init = 'kaiming', but it must be one of torch, he, xavier"),
        ({"dropout": 1.0}, "model.dropout = 1.0, but it must be a number from 0 to below 1"),
        ({"bias": 1}, "model.bias = 1, but it must be true or false"),
    ],
)
def test_options_that_break_their_rule_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        mlp(**options)
