"""A small convolutional network: convolution, activation and pooling a few times, then one hidden layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from hpcopt.errors import UsageError
from hpcopt.models import checks
from hpcopt.models.layers import ACTIVATIONS, INITS, as_images, dense_stack, image_shape, initialise

POOLINGS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


@dataclass(frozen=True)
class CNN:
    """Options of ``model.name = "cnn"``; each convolution keeps the size of the image, each pooling halves it."""

    channels: tuple[int, ...] = (16, 32)
    """Channels after each convolution."""
    kernel: int = 3
    """Height and width of the convolutions' kernels, odd."""
    pooling: str = "max"
    """max or average, over 2 x 2 pixels after each convolution."""
    hidden: int = 64
    """Units of the hidden layer before the output; 0 for none."""
    activation: str = "relu"
    """relu, tanh, sigmoid, gelu, silu or elu."""
    batch_norm: bool = False
    """Whether each convolution is followed by batch normalisation, over the samples of a rank."""
    init: str = "torch"
    """torch, he, xavier or sparse."""
    dropout: float = 0.0
    """Fraction of the hidden layer's outputs that training sets to 0."""

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            UsageError: an option breaks its rule.
        """
        object.__setattr__(self, "channels", checks.wholes("channels", self.channels))
        if not self.channels:
            checks.refuse("channels", [], "a list of at least one number")
        if checks.whole("kernel", self.kernel) % 2 == 0:
            checks.refuse("kernel", self.kernel, "odd, so that the image keeps its size")
        checks.choice("pooling", self.pooling, tuple(POOLINGS))
        checks.whole("hidden", self.hidden, low=0)
        checks.choice("activation", self.activation, tuple(ACTIVATIONS))
        checks.flag("batch_norm", self.batch_norm)
        checks.choice("init", self.init, INITS)
        checks.fraction("dropout", self.dropout)

    def make(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """The network for images of ``input_shape``: (b, *input_shape) -> (b, outputs).

        Raises:
            UsageError: the samples are no images, or are too small to be pooled so often.
        """
        fan_in, height, width = image_shape("cnn", input_shape)
        height, width = height >> len(self.channels), width >> len(self.channels)
        if not height or not width:
            raise UsageError(
                f"model.channels = {list(self.channels)} halves images of shape {input_shape} {len(self.channels)} "
                "times, which leaves nothing of them; each side needs at least 2 pixels for every halving. Use fewer "
                "channels, or model.name = 'mlp'."
            )
        layers = as_images(input_shape)
        for fan_out in self.channels:
            layers += self._block(fan_in, fan_out)
            fan_in = fan_out
        sizes = [fan_in * height * width, *([self.hidden] if self.hidden else []), outputs]
        model = nn.Sequential(*layers, nn.Flatten(), *dense_stack(sizes, self.activation, dropout=self.dropout))
        initialise(model, self.init)
        return model

    def _block(self, fan_in: int, fan_out: int) -> list[nn.Module]:
        norm: list[nn.Module] = [nn.BatchNorm2d(fan_out)] if self.batch_norm else []
        convolution = nn.Conv2d(fan_in, fan_out, self.kernel, padding=self.kernel // 2, bias=not norm)
        return [convolution, *norm, ACTIVATIONS[self.activation](), POOLINGS[self.pooling](2)]
