"""The linear last layer of a module: its place among the parameters, its weights as a matrix, its rows on a batch.

Shapes: b samples, m columns of the design with that of the bias, t outputs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hpcopt.errors import UsageError
from hpcopt.objective.losses import target_values
from hpcopt.objective.parameters import FlatParameters
from hpcopt.objective.protocol import Vector

ADVICE = (
    "The method solves for a last layer that is linear: end the model with torch.nn.Linear, without an activation "
    "after it, or use another method."
)


class LastLayer:
    """The ``torch.nn.Linear`` at the end of a module.

    Args:
        module: the whole model.
        parameters: the flat vector over its trainable parameters.

    Attributes:
        width: m.
        outputs: t.

    Raises:
        UsageError: there is none, it is not trainable, or another layer has the same weights.
    """

    def __init__(self, module: torch.nn.Module, parameters: FlatParameters) -> None:
        self._module, self._layer = module, _last(module)
        places = {id(tensor): place for tensor, place in zip(parameters.tensors, parameters.slices(), strict=True)}
        own = dict(self._layer.named_parameters())
        names = [id(tensor) for _, tensor in module.named_parameters(remove_duplicate=False)]
        for name, tensor in own.items():
            if id(tensor) not in places or names.count(id(tensor)) > 1:
                fault = "is shared with another layer" if id(tensor) in places else "does not require a gradient"
                raise UsageError(f"the {name} of the model's last layer {fault}, so it cannot be solved for. {ADVICE}")
        self._places = {name: places[id(tensor)] for name, tensor in own.items()}
        self.outputs, self._inputs = self._layer.weight.shape
        self.width = self._inputs + ("bias" in own)

    @property
    def places(self) -> list[slice]:
        """Where its parameters lie in a vector (n,)."""
        return list(self._places.values())

    def weights(self, w: Vector) -> torch.Tensor:
        """W (t, m) in a vector (n,), float64 on the CPU, a copy; its last column is the bias."""
        parts = [w[place].view(self.outputs, -1) for place in self._places.values()]
        return torch.cat(parts, dim=1).to("cpu", torch.float64)

    def put(self, w: Vector, weights: torch.Tensor) -> None:
        """Write W (t, m) into a vector (n,)."""
        for place, part in zip(self.places, self._parts(weights), strict=True):
            w[place].view(self.outputs, -1).copy_(part)

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """What the layer gets when the module gets ``inputs``, with its graph.

        Raises:
            UsageError: the layer's outputs are not the module's.
        """
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        hook = self._layer.register_forward_hook(lambda _, given, made: seen.append((given[0], made)))
        try:
            outputs = self._module(inputs)
        finally:
            hook.remove()
        if len(seen) != 1 or outputs.data_ptr() != seen[0][1].data_ptr() or outputs.shape != seen[0][1].shape:
            raise UsageError(f"the last layer {self._layer} does not make the outputs of the model. {ADVICE}")
        return seen[0][0]

    def outputs_of(self, features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """What the layer would make of ``features`` with W (t, m)."""
        parts = zip(self._places, self._parts(weights.to(features)), strict=True)
        given = {name: part.reshape(getattr(self._layer, name).shape) for name, part in parts}
        made: torch.Tensor = torch.func.functional_call(self._layer, given, (features,))
        return made

    def rows(
        self, features: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]]:
        """Columns (None for all), design (b, m) and residual (b, t) of a batch, in float64."""
        design = features.detach().to(torch.float64).reshape(-1, self._inputs)
        if self.width > self._inputs:
            design = torch.cat([design, torch.ones_like(design[:, :1])], dim=1)
        made = design @ weights.to(design).T
        yield None, design, made - target_values(made, targets)

    def _parts(self, weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Weight (t, m - 1) and bias (t, 1), where there is one."""
        sizes = [self._inputs, self.width - self._inputs][: len(self._places)]
        return tuple(weights.split(sizes, dim=1))


def _last(module: torch.nn.Module) -> torch.nn.Linear:
    with_parameters = [m for m in module.modules() if next(m.parameters(recurse=False), None) is not None]
    if not with_parameters or not isinstance(with_parameters[-1], torch.nn.Linear):
        last = type(with_parameters[-1]).__name__ if with_parameters else "nothing"
        raise UsageError(f"the last layer of the model {type(module).__name__} with variables is {last}. {ADVICE}")
    return with_parameters[-1]
