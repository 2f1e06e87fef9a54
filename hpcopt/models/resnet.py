"""ResNet-32 for CIFAR with pre-activation blocks ("v2": He et al. 2016, arXiv:1603.05027).

As in the CIFAR experiments with stochastic preconditioned nonlinear CG: 16, 32 and 64 filters, five blocks a stage, a
1x1 projection of the activated input at the head of every stage including the first, batch normalisation with a
running average of 0.99 and epsilon 1e-5, truncated normal weights of variance 1/fan_in. 472,820 parameters for 100
classes and images of 3 channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from hpcopt.models import checks
from hpcopt.models.layers import as_images, image_shape

BLOCKS = 5
"""Blocks a stage: 3 stages of 5 blocks of 2 convolutions, the first convolution and the last layer make 32."""

_TRUNCATED = 0.87962566103423978
"""Standard deviation of a normal variable cut off at two standard deviations."""


@dataclass(frozen=True)
class ResNet32:
    """Options of ``model.name = "resnet32"``; takes images of any size and number of channels."""

    width: int = 16
    """Filters of the first stage; the second and third have two and four times as many."""

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            UsageError: an option breaks its rule.
        """
        checks.whole("width", self.width)

    def make(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """The network for images of ``input_shape``: (b, *input_shape) -> (b, outputs).

        Raises:
            UsageError: the samples are no images.
        """
        channels = image_shape("resnet32", input_shape)[0]
        layers = [*as_images(input_shape), _convolution(channels, self.width, 3)]
        fan_in = self.width
        for stage in range(3):
            fan_out = self.width << stage
            for block in range(BLOCKS):
                layers.append(PreActivationBlock(fan_in, fan_out, 1 + (stage > 0 and block == 0), head=block == 0))
                fan_in = fan_out
        head = [_norm(fan_in), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, outputs)]
        model = nn.Sequential(*layers, *head)
        _initialise(model)
        return model


class PreActivationBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))); at the head of a stage the first term is projected.

    Args:
        fan_in: channels of x.
        fan_out: channels of the result.
        stride: 2 halves the image, 1 keeps its size.
        head: whether the block is the first of a stage.
    """

    def __init__(self, fan_in: int, fan_out: int, stride: int, *, head: bool) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(fan_in), _convolution(fan_in, fan_out, 3, stride)
        self.norm2, self.conv2 = _norm(fan_out), _convolution(fan_out, fan_out, 3)
        self.projection = _convolution(fan_in, fan_out, 1, stride) if head else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, fan_in, height, width) -> (b, fan_out, height / stride, width / stride)."""
        active = functional.relu(self.norm1(x))
        shortcut = x if self.projection is None else self.projection(active)
        result: torch.Tensor = shortcut + self.conv2(functional.relu(self.norm2(self.conv1(active))))
        return result


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.01)  # torch's momentum is one minus the usual one


def _convolution(fan_in: int, fan_out: int, kernel: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(fan_in, fan_out, kernel, stride, padding=kernel // 2, bias=False)


@torch.no_grad()
def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            std = module.weight[0].numel() ** -0.5 / _TRUNCATED
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            module.bias.zero_()
