"""Operations and memory traffic of a model for one sample, layer by layer, as one forward pass shows them.

Linear layers and convolutions are matrix products of ``rows`` x ``inputs`` by ``inputs`` x ``outputs``; all other
modules count by the memory that they read and write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

VIEWS = (torch.nn.Flatten, torch.nn.Unflatten, torch.nn.Identity)
"""Modules that neither read nor write."""


@dataclass(frozen=True)
class Layer:
    """A module without children, for one sample.

    Attributes:
        rows: of its matrix product; 0 where it is none.
        inputs: columns of the left factor.
        outputs: columns of the right one.
        read: numbers that it is given.
        written: numbers that it makes.
    """

    rows: float
    inputs: int
    outputs: int
    read: float
    written: float


def layers_of(model: torch.nn.Module, inputs: torch.Tensor) -> list[Layer]:
    """The layers in the order of their calls, from a forward pass on some samples as the model is evaluated.

    Args:
        model: any torch module; left as it is.
        inputs: samples (b, ...), at least one.
    """
    found: list[Layer] = []

    def note(module: torch.nn.Module, given: tuple[Any, ...], made: Any) -> None:
        if isinstance(made, torch.Tensor) and given and isinstance(given[0], torch.Tensor):
            found.append(_layer(module, given[0].numel() / len(inputs), made.numel() / len(inputs)))

    leaves = [m for m in model.modules() if not list(m.children()) and not isinstance(m, VIEWS)]
    hooks = [module.register_forward_hook(note) for module in leaves]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return found


def network_layers(blocks: Sequence[tuple[int, int]]) -> list[Layer]:
    """Those of a fully connected network of which a rank holds (inputs, outputs) of each layer, with activations."""
    made = []
    for a, b in blocks:
        made += [Layer(1.0, a, b, a, b), Layer(0.0, 0, 0, b, b)]
    return made[:-1]


def _layer(module: torch.nn.Module, read: float, written: float) -> Layer:
    if isinstance(module, torch.nn.Linear):
        return Layer(written / module.out_features, module.in_features, module.out_features, read, written)
    if isinstance(module, torch.nn.modules.conv._ConvNd):
        kernel = module.weight[0].numel()
        if isinstance(module, torch.nn.modules.conv._ConvTransposeNd):
            return Layer(read / module.in_channels, module.in_channels, kernel, read, written)
        return Layer(written / module.out_channels, kernel, module.out_channels, read, written)
    return Layer(0.0, 0, 0, read, written)
