"""Networks are found by name, seeded by the run's seed, and refuse what they do not know."""

import pytest
import torch

from hpcopt.errors import UsageError
from hpcopt.models import build, count_parameters
from hpcopt.models.registry import MODELS, option_names

IMAGE = (3, 8, 8)
OUTPUTS = 192
"""As many as an image has numbers, which an autoencoder needs."""
ALL = pytest.mark.parametrize("name", MODELS)


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@ALL
def test_a_network_maps_a_batch_to_its_outputs(name):
    model = build(name, {}, IMAGE, OUTPUTS, seed=0)
    assert model(torch.zeros(2, *IMAGE)).shape == (2, OUTPUTS)


@ALL
def test_the_seed_decides_the_weights(name):
    first = build(name, {}, IMAGE, OUTPUTS, seed=1)
    assert same(first, build(name, {}, IMAGE, OUTPUTS, seed=1))
    assert not same(first, build(name, {}, IMAGE, OUTPUTS, seed=2))


@ALL
def test_torch_s_own_generator_neither_matters_nor_moves(name):
    torch.manual_seed(11)
    first = build(name, {}, IMAGE, OUTPUTS, seed=1)
    drawn = torch.rand(3)
    torch.manual_seed(11)
    assert torch.equal(drawn, torch.rand(3))
    torch.manual_seed(12)
    assert same(first, build(name, {}, IMAGE, OUTPUTS, seed=1))


def test_the_generator_is_as_before_after_a_refusal_too():
    before = torch.get_rng_state()
    with pytest.raises(UsageError):
        build("mlp", {"widths": [0]}, IMAGE, OUTPUTS, seed=1)
    assert torch.equal(before, torch.get_rng_state())


@ALL
def test_an_unknown_option_is_refused_with_the_nearest_one(name):
    known = option_names(name)[0]
    with pytest.raises(UsageError, match=rf"model\.{known}s is not an option .* did you mean '{known}'\?"):
        build(name, {f"{known}s": 1}, IMAGE, OUTPUTS, seed=0)


def test_an_unknown_network_is_refused_with_the_nearest_one():
    with pytest.raises(UsageError, match=r"'resnet' is not a network of hpcopt; did you mean 'resnet32'\?"):
        build("resnet", {}, IMAGE, OUTPUTS, seed=0)


def test_the_name_may_stand_among_the_options():
    assert count_parameters(build("mlp", {"name": "mlp", "widths": []}, (3,), 2, seed=0)) == 8


def test_parameters_are_counted_once_and_only_where_trainable():
    layer = torch.nn.Linear(3, 3)
    model = torch.nn.Sequential(layer, layer, torch.nn.Linear(3, 1))
    assert count_parameters(model) == 9 + 3 + 4
    layer.weight.requires_grad_(False)
    assert count_parameters(model) == 3 + 4
