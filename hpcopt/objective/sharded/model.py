"""The module of an objective whose ranks keep a slice of w each: whole while it is evaluated, saved in slices.

Shapes: n numbers of w on this rank, N of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from hpcopt.layout.block import Block
from hpcopt.layout.partitioned import Partitioned
from hpcopt.layout.slices import rows_within
from hpcopt.objective.model_state import ReplicatedModel
from hpcopt.objective.protocol import Vector


class ShardedModel:
    """A torch module, and this rank's slice of the vector of its parameters.

    What is saved of it has the names and shapes that it has where every rank holds all of w, and so has what is saved
    of a method's vectors. So either can be read where the other was saved, and on any number of ranks.

    Args:
        whole: the module over all of w.
        part: this rank's slice, which cuts no row of a tensor.
        gather: gives the whole vector (N,) of all ranks' slices. *Collective*.
    """

    def __init__(self, whole: ReplicatedModel, part: Block, gather: Callable[[Vector], Vector]) -> None:
        self.whole, self._part, self._gather = whole, part, gather
        self._rows = rows_within(whole.parameters.shapes, part)
        self._w = self.initial_vector()

    @property
    def name(self) -> str:
        """The module's class."""
        return self.whole.name

    @property
    def dtype(self) -> torch.dtype:
        """Precision of w."""
        return self.whole.dtype

    @property
    def device(self) -> torch.device:
        """Where w lies."""
        return self.whole.device

    def initial_vector(self) -> Vector:
        """A fresh copy of this rank's slice of what the module holds now."""
        return self.whole.parameters.copy()[self._part.slice].clone()

    def bind(self, w: Vector) -> None:
        """The module is at the ranks' w (n,) from now on. *Collective*."""
        self.hold(w, self._gather(w))

    def hold(self, w: Vector, gathered: Vector) -> None:
        """As ``bind``, with the whole vector (N,) at hand."""
        self._w = w
        self.whole.bind(gathered)

    def tensors(self) -> dict[str, torch.Tensor | Partitioned]:
        """All that the module is now, of its parameters this rank's rows."""
        return self.whole.tensors() | self.blocks(self._w)

    def tensors_at(self, w: Vector, buffers: Sequence[torch.Tensor]) -> dict[str, torch.Tensor | Partitioned]:
        """As ``tensors``, of another point and with other running statistics; without what is neither."""
        return self.whole.named_buffers(buffers) | self.blocks(w)

    def blocks(self, tensor: torch.Tensor) -> dict[str, Partitioned]:
        """Views of a tensor (..., n) as this rank's rows of the module's parameters."""
        before, parameters = tensor.shape[:-1], self.whole.parameters
        zeros, found = (0,) * len(before), {}
        for whole, shape, rows in zip(parameters.tensors, parameters.shapes, self._rows, strict=True):
            data = tensor[..., rows.place].view(*before, *rows.shape)
            found[id(whole)] = Partitioned(data, (*before, *shape), (*zeros, *rows.start))
        return self.whole.named(found)

    def stored(self, tensor: torch.Tensor) -> Partitioned:
        """A tensor (..., n) of a method's state as this rank's slice of the whole (..., N)."""
        before = tensor.shape[:-1]
        return Partitioned(tensor, (*before, self.whole.parameters.size), (*(0,) * len(before), self._part.start))

    def load(self, tensors: Mapping[str, torch.Tensor]) -> Vector:
        """Become what ``tensors`` told once; returns a fresh copy of w. *Collective*."""
        w = self._read(tensors)
        others = self.whole.tensors().keys() - self.blocks(w).keys()
        self.whole.copy_named({name: tensors[name] for name in others})
        self.bind(w)
        return w.clone()

    def read(self, tensors: Mapping[str, torch.Tensor]) -> tuple[Vector, list[torch.Tensor]]:
        """W (n,) and the running statistics that ``tensors_at`` told once."""
        return self._read(tensors), self.whole.read_buffers(tensors)

    def copy_buffers(self) -> list[torch.Tensor]:
        """What the module holds besides parameters, such as running statistics."""
        return self.whole.copy_buffers()

    def restore_buffers(self, buffers: Sequence[torch.Tensor]) -> None:
        """Put back what ``copy_buffers`` gave."""
        self.whole.restore_buffers(buffers)

    def synchronize_buffers(self) -> None:
        """Average the module's running statistics over the ranks. *Collective*."""
        self.whole.synchronize_buffers()

    def _read(self, tensors: Mapping[str, torch.Tensor]) -> Vector:
        w = torch.empty_like(self._w)
        for name, block in self.blocks(w).items():
            block.data.copy_(tensors[name])
        return w
