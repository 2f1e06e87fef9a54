"""The small convolutional network is what its options say."""

import pytest
import torch

from hpcopt.errors import UsageError
from hpcopt.models import build, count_parameters


def cnn(input_shape=(1, 28, 28), **options):
    return build("cnn", options, input_shape, 10, seed=0)


def kinds(model):
    return [type(layer).__name__ for layer in model]


def test_layers_follow_the_options():
    model = cnn(channels=[4], hidden=16, activation="elu", batch_norm=True, pooling="average", dropout=0.1)
    expected = "Conv2d BatchNorm2d ELU AvgPool2d Flatten Linear ELU Dropout Linear"
    assert kinds(model) == expected.split()
    assert count_parameters(model) == 4 * 9 + 8 + (4 * 14 * 14) * 16 + 16 + 160 + 10


def test_without_a_hidden_layer_the_output_follows_the_images():
    assert count_parameters(cnn(channels=[4], kernel=5, hidden=0)) == 4 * 25 + 4 + 4 * 14 * 14 * 10 + 10


@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28), (3, 32, 32), (8, 8), (3, 7, 5)])
def test_images_of_any_size_and_number_of_channels_fit(shape):
    assert cnn(shape)(torch.zeros(2, *shape)).shape == (2, 10)


def test_images_with_and_without_a_channel_give_the_same():
    images = torch.rand(2, 8, 8)
    assert torch.equal(cnn((8, 8))(images), cnn((1, 8, 8))(images[:, None]))


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((64,), {}, r"takes images.*has shape \(64,\).*mlp"),
        ((3, 4, 4), {"channels": [1, 1, 1]}, r"model.channels = \[1, 1, 1\] halves .* leaves nothing"),
        ((8, 8), {"kernel": 4}, "model.kernel = 4, but it must be odd"),
        ((8, 8), {"channels": []}, "at least one number"),
        ((8, 8), {"pooling": "maximum"}, "one of max, average"),
        ((8, 8), {"hidden": -1}, "model.hidden = -1, but it must be a whole number of at least 0"),
        ((8, 8), {"batch_norm": "yes"}, "true or false"),
    ],
)
def test_what_cannot_work_is_refused(shape, options, message):
    with pytest.raises(UsageError, match=message):
        cnn(shape, **options)
