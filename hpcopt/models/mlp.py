"""The multilayer perceptron: linear layers with an activation between them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import nn

from hpcopt.models import checks
from hpcopt.models.layers import ACTIVATIONS, INITS, dense_stack, initialise


@dataclass(frozen=True)
class MLP:
    """Options of ``model.name = "mlp"``; samples of any shape are flattened."""

    widths: tuple[int, ...] = (128,)
    """Units of each hidden layer, from input to output; an empty list makes a linear model."""
    activation: str = "relu"
    """relu, tanh, sigmoid, gelu, silu or elu, after each hidden layer."""
    bias: bool = True
    """Whether the layers have biases."""
    init: str = "torch"
    """torch, he, xavier or sparse."""
    dropout: float = 0.0
    """Fraction of each hidden layer's outputs that training sets to 0."""

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            UsageError: an option breaks its rule.
        """
        object.__setattr__(self, "widths", checks.wholes("widths", self.widths))
        checks.choice("activation", self.activation, tuple(ACTIVATIONS))
        checks.flag("bias", self.bias)
        checks.choice("init", self.init, INITS)
        checks.fraction("dropout", self.dropout)

    def make(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """The network for samples of ``input_shape``: (b, *input_shape) -> (b, outputs)."""
        sizes = [prod(input_shape), *self.widths, outputs]
        model = nn.Sequential(nn.Flatten(), *dense_stack(sizes, self.activation, bias=self.bias, dropout=self.dropout))
        initialise(model, self.init)
        return model
