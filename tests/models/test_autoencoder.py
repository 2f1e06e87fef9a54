"""The autoencoder is the published one, and says what it needs."""

from __future__ import annotations

import pytest
import torch

from hpcopt.errors import UsageError
from hpcopt.models import build, count_parameters


def test_it_has_the_published_numbers_of_parameters() -> None:
    """175,218, and 257 of the layer that is solved for."""
    model = build("autoencoder", {}, (1, 28, 28), 784, seed=0)
    assert count_parameters(model) == 175_218 + 257
    assert count_parameters(model[-2]) == 257


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 12), (4, 8)])
def test_it_gives_images_back_as_rows(shape: tuple[int, ...]) -> None:
    images = torch.randn(2, *shape)
    size = images[0].numel()
    model = build("autoencoder", {"width": 2, "latent": 3, "batch_norm": False}, shape, size, seed=0)
    assert model(images).shape == (2, size)
    assert model[0](images).shape == (2, 3)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in model.modules())


@pytest.mark.parametrize(
    ("options", "shape", "outputs", "words"),
    [
        ({}, (1, 8, 8), 10, 'Set data.target = "inputs"'),
        ({}, (1, 8, 6), 48, "multiples of 4"),
        ({}, (64,), 64, "takes images"),
        ({"width": 0}, (1, 8, 8), 64, "model.width"),
        ({"latent": 1.5}, (1, 8, 8), 64, "model.latent"),
        ({"batch_norm": 1}, (1, 8, 8), 64, "model.batch_norm"),
    ],
)
def test_wrong_options_and_data_are_refused(
    options: dict[str, object], shape: tuple[int, ...], outputs: int, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        build("autoencoder", options, shape, outputs, seed=0)
