"""An autoencoder of images: two convolutions to a few numbers, and back by two transposed ones.

The network of Newman, Chung, Chung and Ruthotto 2022 (doi 10.1137/21M1452512) for MNIST, from the code released with
it. Its last layer is linear, so that slimTrain can solve for it. To be trained with ``data.target = "inputs"``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import nn

from hpcopt.errors import UsageError
from hpcopt.models import checks
from hpcopt.models.layers import as_images, image_shape

HALVING = (4, 2, 1)
"""Kernel, stride and padding of a convolution that halves each side of an image, or, transposed, doubles it."""


@dataclass(frozen=True)
class Autoencoder:
    """Options of ``model.name = "autoencoder"``; each side of an image is a multiple of 4."""

    width: int = 16
    """Channels after the first convolution, and before the last one; between them there are twice as many."""
    latent: int = 50
    """Numbers that an image is reduced to."""
    batch_norm: bool = True
    """Whether the decoder normalises its channels, over the samples of a rank."""

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            UsageError: an option breaks its rule.
        """
        checks.whole("width", self.width)
        checks.whole("latent", self.latent)
        checks.flag("batch_norm", self.batch_norm)

    def make(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """The network for images of ``input_shape``: (b, *input_shape) -> (b, outputs), all numbers of an image.

        Raises:
            UsageError: the samples are no images or cannot be halved twice, or the targets are not the inputs.
        """
        channels, height, width = image_shape("autoencoder", input_shape)
        if height % 4 or width % 4:
            raise UsageError(
                f"model.name = 'autoencoder' halves images twice, so that both sides must be multiples of 4, but a "
                f"sample of the data has shape {input_shape}. Use other data, or a network of your own."
            )
        if outputs != prod(input_shape):
            raise UsageError(
                f"model.name = 'autoencoder' puts out the {prod(input_shape)} numbers of an image, but the data has "
                f'{outputs} targets or classes. Set data.target = "inputs", which makes the inputs the targets.'
            )
        small = (2 * self.width, height // 4, width // 4)
        decoder = [nn.Unflatten(1, small), *self._norm(2 * self.width)]
        decoder += [nn.ConvTranspose2d(2 * self.width, self.width, *HALVING), nn.ReLU(), *self._norm(self.width)]
        last = nn.ConvTranspose2d(self.width, channels, *HALVING)
        encoder = nn.Sequential(*as_images(input_shape), *self._encoder(channels), nn.Linear(prod(small), self.latent))
        return nn.Sequential(encoder, nn.Linear(self.latent, prod(small)), *decoder, last, nn.Flatten())

    def _encoder(self, channels: int) -> list[nn.Module]:
        first, second = nn.Conv2d(channels, self.width, *HALVING), nn.Conv2d(self.width, 2 * self.width, *HALVING)
        return [first, nn.ReLU(), second, nn.ReLU(), nn.Flatten()]

    def _norm(self, channels: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(channels)] if self.batch_norm else []
