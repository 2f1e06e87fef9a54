"""A module as a function of its parameters, for what differentiates it at a point that it is not bound to.

``torch.func.functional_call`` does the same and asks in every call which tensors the module has; that takes longer than
a small network itself.
"""

from __future__ import annotations

from typing import Any

import torch

from hpcopt.objective.parameters import FlatParameters
from hpcopt.objective.protocol import Vector


class ModuleFunction:
    """Calls a module with other tensors in place of its own, which stay as they are.

    Args:
        module: the network. Layers, parameters and buffers must not be added or removed afterwards.
        parameters: the flat vector over it.
    """

    def __init__(self, module: torch.nn.Module, parameters: FlatParameters) -> None:
        self._module, self._parameters = module, parameters
        numbers = {id(tensor): number for number, tensor in enumerate([*parameters.tensors, *module.buffers()])}
        kinds: list[dict[str, Any]] = [kind for part in module.modules() for kind in (part._parameters, part._buffers)]
        # One that two layers share has two places and one number.
        self._places = [
            (kind, name, numbers[id(tensor)])
            for kind in kinds
            for name, tensor in kind.items()
            if id(tensor) in numbers
        ]
        first = {number: (kind, name) for kind, name, number in reversed(self._places)}
        self._buffers = [first[number] for number in range(len(parameters.tensors), len(numbers))]

    def __call__(self, w: Vector, inputs: torch.Tensor) -> torch.Tensor:
        """The outputs (b, C) at w (n,), through which they can be differentiated."""
        # Copies of buffers, since the module's own may be written to while a graph still needs what they were.
        tensors = [*self._parameters.views(w), *(kind[name].clone() for kind, name in self._buffers)]
        own = [kind[name] for kind, name, _ in self._places]
        try:
            for kind, name, number in self._places:
                kind[name] = tensors[number]
            outputs: torch.Tensor = self._module(inputs)
            return outputs
        finally:
            for (kind, name, _), tensor in zip(self._places, own, strict=True):
                kind[name] = tensor
