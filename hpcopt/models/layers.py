"""What the networks share: activations, initial weights and images with or without a channel dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn

from hpcopt.errors import UsageError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
}
"""Name in the job file -> layer."""

INITS = ("torch", "he", "xavier", "sparse")
"""torch: as torch makes its layers. he: normal, variance 2/fan_in (He et al. 2015, arXiv:1502.01852), 1/fan_in in the
last layer. xavier: uniform, variance 2/(fan_in + fan_out) (Glorot and Bengio 2010). sparse: normal, variance 1, at
``SPARSE_INPUTS`` inputs of each unit drawn at random, 0 at the others (Martens 2010). All three with biases of 0."""

SPARSE_INPUTS = 15
"""Incoming weights of a unit that are not 0 (Martens 2010, "Deep learning via Hessian-free optimization")."""


def dense_stack(sizes: Sequence[int], activation: str, *, bias: bool = True, dropout: float = 0.0) -> list[nn.Module]:
    """Linear layers of these sizes, from input to output, with activation and dropout between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes[:-1]):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), ACTIVATIONS[activation]()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return [*layers, nn.Linear(sizes[-2], sizes[-1], bias=bias)]


@torch.no_grad()
def initialise(model: nn.Module, rule: str) -> None:
    """Draw the weights of all linear and convolution layers anew by ``rule``, one of ``INITS``."""
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    if rule == "torch":
        return
    for layer in layers:
        if rule == "he":
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if layer is layers[-1] else "relu")
        elif rule == "xavier":
            nn.init.xavier_uniform_(layer.weight)
        else:
            _sparse(layer.weight)
        if layer.bias is not None:
            layer.bias.zero_()


def _sparse(weight: torch.Tensor) -> None:
    units = weight.view(weight.shape[0], -1)
    chosen = torch.rand(units.shape).argsort(dim=1)[:, :SPARSE_INPUTS]
    units.zero_().scatter_(1, chosen, torch.randn(chosen.shape))


def image_shape(model: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, height, width) of a sample; a sample of shape (height, width) has one channel.

    Raises:
        UsageError: the samples are no images.
    """
    if len(input_shape) not in (2, 3):
        raise UsageError(
            f"model.name = {model!r} takes images, (channels, height, width) or (height, width), but a sample of the "
            f"data has shape {input_shape}. Use model.name = 'mlp' for this data."
        )
    channels, height, width = (1, *input_shape) if len(input_shape) == 2 else input_shape
    return channels, height, width


class AddChannel(nn.Module):
    """(b, height, width) -> (b, 1, height, width)."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The images with one channel."""
        return images.unsqueeze(1)


def as_images(input_shape: tuple[int, ...]) -> list[nn.Module]:
    """The layer that gives images of shape (height, width) their channel, where it is missing."""
    return [AddChannel()] if len(input_shape) == 2 else []
