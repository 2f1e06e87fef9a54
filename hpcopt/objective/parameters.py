"""One flat contiguous vector over a module's parameters, with the module's own tensors as views of it."""

from __future__ import annotations

from functools import cached_property
from itertools import accumulate, pairwise

import torch

from hpcopt.errors import UsageError
from hpcopt.objective.protocol import Vector


class FlatParameters:
    """The trainable parameters of a module as one vector w of n numbers, in the order of ``module.named_parameters()``.

    Args:
        module: any torch module; its trainable parameters are converted to ``dtype`` and ``device`` in place.
        dtype: torch.float32 or torch.float64.
        device: where w lives.

    Raises:
        UsageError: the module has no trainable parameter or one without a shape, or the dtype is not float32 or
            float64.
    """

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise UsageError(f"the parameters cannot be {dtype}; steps are reduced in float32 or float64, choose one")
        if lazy := [name for name, p in module.named_parameters() if torch.nn.parameter.is_lazy(p)]:
            raise UsageError(
                f"the parameter {lazy[0]} of the model {type(module).__name__} has no shape yet, as that of a lazy "
                "layer; call the model with a sample before it is given to hpcopt"
            )
        module.to(device=device, dtype=dtype)
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        if not named:
            raise UsageError(
                f"the model {type(module).__name__} has no trainable parameter; at least one tensor must have "
                "requires_grad=True for there to be something to train"
            )
        self.names = [name for name, _ in named]
        self.tensors = [p for _, p in named]
        self.shapes = [p.shape for p in self.tensors]
        self.counts = [p.numel() for p in self.tensors]
        self.size = sum(self.counts)
        self.dtype, self.device = dtype, device
        self._bound = torch.cat([p.detach().reshape(-1) for p in self.tensors])
        self._attach(self._bound)

    def slices(self) -> list[slice]:
        """The part of w that each tensor occupies, in order."""
        return self._slices

    @cached_property
    def _slices(self) -> list[slice]:
        return [slice(a, b) for a, b in pairwise(accumulate(self.counts, initial=0))]

    def views(self, vector: Vector) -> list[torch.Tensor]:
        """``vector`` cut and shaped like the module's tensors; differentiable, its adjoint is one concatenation."""
        return [part.view(shape) for part, shape in zip(vector.split_with_sizes(self.counts), self.shapes, strict=True)]

    def bind(self, vector: Vector) -> None:
        """Make the module's tensors views of ``vector``, without a copy; later writes to it are seen by the module."""
        if vector is self._bound:
            return
        if vector.data_ptr() != self._bound.data_ptr():
            self._check(vector)
            self._attach(vector)
        self._bound = vector

    def copy(self) -> Vector:
        """A fresh copy of the parameters that the module holds now."""
        return self._bound.detach().clone()

    def _attach(self, vector: Vector) -> None:
        for tensor, view in zip(self.tensors, self.views(vector.detach()), strict=True):
            tensor.data = view

    def _check(self, vector: Vector) -> None:
        if vector.shape != (self.size,) or vector.dtype != self.dtype or not vector.is_contiguous():
            raise ValueError(
                f"expected a contiguous vector of {self.size} {self.dtype} numbers, "
                f"got shape {tuple(vector.shape)} of {vector.dtype}"
            )
