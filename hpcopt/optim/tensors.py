"""The tensors that an optimiser of torch was given, read and written as one vector of n numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

import torch

from hpcopt.errors import UsageError
from hpcopt.objective.protocol import Vector

_Kind = TypeVar("_Kind", torch.dtype, torch.device)


class ParameterTensors:
    """Trainable tensors as one vector, in their order. They keep their memory: every write is a copy into it.

    A model may be compiled, or known by the addresses of its tensors to others; so nothing is replaced.

    Args:
        tensors: the parameters; those with ``requires_grad=False`` are left out.

    Raises:
        UsageError: none is trainable, or they are not all of float32 or all of float64 on one device.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self.tensors = [tensor for tensor in tensors if tensor.requires_grad]
        if not self.tensors:
            raise UsageError(
                f"none of the {len(tensors)} parameters is trainable; at least one must have requires_grad=True for "
                "there to be something to train"
            )
        self.dtype = _common([tensor.dtype for tensor in self.tensors], "precisions", "model.float() or model.double()")
        self.device = _common([tensor.device for tensor in self.tensors], "devices", "model.to(device)")
        if self.dtype not in (torch.float32, torch.float64):
            raise UsageError(
                f"the parameters cannot be {self.dtype}; steps are reduced in float32 or float64. Convert the model "
                "with model.float() or model.double() before it is given to the optimiser"
            )
        self.shapes = [tensor.shape for tensor in self.tensors]
        self.counts = [tensor.numel() for tensor in self.tensors]
        self.size = sum(self.counts)

    def slices(self) -> list[slice]:
        """The part of the vector that each tensor occupies, in order."""
        return [slice(end - count, end) for end, count in zip(accumulate(self.counts), self.counts, strict=True)]

    def read(self) -> Vector:
        """The parameters as they are now, a new vector (n,)."""
        return torch.cat([tensor.detach().reshape(-1) for tensor in self.tensors])

    def write(self, w: Vector) -> None:
        """Copy w (n,) into the tensors."""
        with torch.no_grad():
            for tensor, part in zip(self.tensors, w.split(self.counts), strict=True):
                tensor.copy_(part.view(tensor.shape))

    def clear_gradients(self) -> None:
        """Leave None in every ``grad``."""
        for tensor in self.tensors:
            tensor.grad = None

    def has_gradient(self) -> bool:
        """Whether any tensor has a gradient."""
        return any(tensor.grad is not None for tensor in self.tensors)

    def read_gradient(self, out: Vector) -> None:
        """Write every ``grad`` into ``out`` (n,), zeros where there is none."""
        parts = (torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in self.tensors)
        torch.cat([part.reshape(-1) for part in parts], out=out)


def _common(found: Sequence[_Kind], what: str, cure: str) -> _Kind:
    if len(set(found)) > 1:
        names = ", ".join(sorted({str(each) for each in found}))
        raise UsageError(
            f"the parameters are of different {what} ({names}); the optimiser treats them as one vector, so they must "
            f"be alike. Convert the model with {cure} before it is given to the optimiser"
        )
    return found[0]
