"""A residual network that is a stable differential equation: antisymmetric layers, integrated by Runge and Kutta.

    y(0) = tanh(K x + b0),   dy/dt = tanh(A(t) y + b(t)),   A = B - B^T - gamma I,   outputs = W y(T) + c

The eigenvalues of A have a small negative real part, so that features neither grow nor vanish (Haber and Ruthotto 2017,
arXiv 1705.03341, section 4). A(t) and b(t) are given at the nodes of a time grid and linear in between; each step is
one of the classical method of order 4, as in the experiments of Newman, Chung, Chung and Ruthotto 2022 (doi
10.1137/21M1452512). Shapes: b samples, w units, k nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt

import torch
from torch import nn

from hpcopt.checks import is_number
from hpcopt.models import checks

GAMMA = 1e-4
"""Damping of the equation (the same source)."""


@dataclass(frozen=True)
class AntisymmetricResNet:
    """Options of ``model.name = "antisymmetric_resnet"``; samples of any shape are flattened."""

    width: int = 16
    """Units: the size of y."""
    nodes: int = 8
    """Points in time that have weights of their own; there is one step less."""
    time: float = 5.0
    """T."""
    bias: bool = True
    """Whether the opening layer has a bias."""

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            UsageError: an option breaks its rule.
        """
        checks.whole("width", self.width, 2)
        checks.whole("nodes", self.nodes, 2)
        checks.flag("bias", self.bias)
        if not is_number(self.time, 0, open_low=True):
            checks.refuse("time", self.time, "a number above 0")

    def make(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """The network for samples of ``input_shape``: (b, *input_shape) -> (b, outputs)."""
        opening = nn.Linear(prod(input_shape), self.width, bias=self.bias)
        equation = AntisymmetricEquation(self.width, self.nodes, self.time)
        closing = nn.Linear(self.width, outputs)
        with torch.no_grad():
            opening.weight.normal_(std=sqrt(2 / opening.in_features))
            closing.weight.normal_()
            for layer in (opening, closing):
                if layer.bias is not None:
                    layer.bias.zero_()
        return nn.Sequential(nn.Flatten(), opening, nn.Tanh(), equation, closing)


class AntisymmetricEquation(nn.Module):
    """Y(0) (b, w) -> y(T) (b, w)."""

    def __init__(self, width: int, nodes: int, time: float) -> None:
        super().__init__()
        self._step = time / (nodes - 1)
        # The same at all nodes at the start: the equation is then autonomous.
        start = torch.randn(width * (width - 1) // 2) / sqrt(width)
        self.weights = nn.Parameter(start.repeat(nodes, 1))
        self.biases = nn.Parameter(torch.zeros(nodes, width))
        self.register_buffer("_below", torch.tril_indices(width, width, -1), persistent=False)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """Integrate from 0 to T."""
        # A^T, since the rows of y are multiplied from the right.
        matrices, h = self.matrices().mT, self._step
        middle, middle_biases = (matrices[1:] + matrices[:-1]) / 2, (self.biases[1:] + self.biases[:-1]) / 2
        nodes = list(zip(matrices.unbind(), self.biases.unbind(), strict=True))
        for i, half in enumerate(zip(middle.unbind(), middle_biases.unbind(), strict=True)):
            first = _rate(y, *nodes[i])
            second = _rate(torch.add(y, first, alpha=h / 2), *half)
            third = _rate(torch.add(y, second, alpha=h / 2), *half)
            fourth = _rate(torch.add(y, third, alpha=h), *nodes[i + 1])
            y = y + (h / 6) * (first + fourth + 2 * (second + third))
        return y

    def matrices(self) -> torch.Tensor:
        """A at the nodes, (k, w, w)."""
        nodes, width = self.biases.shape
        rows, columns = self._below.unbind()  # type: ignore[operator]
        lower = self.weights.new_zeros(nodes, width, width)
        lower[:, rows, columns] = self.weights
        return lower - lower.mT - GAMMA * torch.eye(width, dtype=lower.dtype, device=lower.device)


def _rate(y: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.addmm(bias, y, matrix).tanh()
