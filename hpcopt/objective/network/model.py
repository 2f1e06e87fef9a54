"""What a cut network is at a point: this rank's blocks of its tensors, by the names torch gives them.

The names and shapes are those of ``hpcopt.models.mlp``: layer m is number 2 m - 1 of a ``torch.nn.Sequential``, after
the flattening of the samples and the activations, and its weight is W^m transposed. So what is saved of a network on a
grid can be loaded by the module on one process.
Shapes: n numbers of w on this rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from hpcopt.layout.network import NetworkLayout
from hpcopt.layout.partitioned import Partitioned
from hpcopt.objective.protocol import Vector


class PartitionedModel:
    """The point that a cut network is at; there is nothing else to it.

    Args:
        partition: who holds which block of every layer.
        rank: this rank.
        w: where the network is, (n,).

    Attributes:
        saves: whether this rank writes its blocks to checkpoints; not where another one does.
    """

    name = "mlp"
    saves = True

    def __init__(self, partition: NetworkLayout, rank: int, w: Vector) -> None:
        self._partition, self._rank, self._w = partition, rank, w

    @property
    def dtype(self) -> torch.dtype:
        """Precision of w."""
        return self._w.dtype

    @property
    def device(self) -> torch.device:
        """Where w lies."""
        return self._w.device

    def bind(self, w: Vector) -> None:
        """The network is at w from now on."""
        self._w = w

    def tensors(self) -> dict[str, torch.Tensor | Partitioned]:
        """This rank's blocks of all tensors."""
        return dict(self._blocks(self._w))

    def tensors_at(self, w: Vector, buffers: Sequence[torch.Tensor]) -> dict[str, torch.Tensor | Partitioned]:
        """This rank's blocks of all tensors at another point."""
        return dict(self._blocks(w))

    def blocks(self, tensor: torch.Tensor) -> dict[str, Partitioned]:
        """Views of a tensor (..., n) as this rank's blocks of arrays (..., outputs, inputs) and (..., outputs)."""
        return self._blocks(tensor)

    def stored(self, tensor: torch.Tensor) -> dict[str, Partitioned]:
        """A tensor (..., n) of a method's state as it is saved: its ``blocks``."""
        return self._blocks(tensor)

    def places(self) -> torch.Tensor:
        """The number of each of this rank's variables in the whole, int64 (n,): arrays one after the other, by rows."""
        found, first = torch.empty(len(self._w), dtype=torch.int64), 0
        for block in self._blocks(found).values():
            place = torch.full(block.data.shape, first)
            for axis, (start, length) in enumerate(zip(block.start, block.data.shape, strict=True)):
                index = (torch.arange(length) + start) * math.prod(block.shape[axis + 1 :])
                place += index.view(-1, *[1] * (block.data.dim() - axis - 1))
            block.data.copy_(place)
            first += math.prod(block.shape)
        return found

    def load(self, tensors: Mapping[str, torch.Tensor]) -> Vector:
        """Be where the blocks in ``tensors`` say; returns a fresh copy of w."""
        self._w = self.read(tensors)[0]
        return self._w.clone()

    def read(self, tensors: Mapping[str, torch.Tensor]) -> tuple[Vector, list[torch.Tensor]]:
        """Give w from this rank's blocks, and no running statistics."""
        w = torch.empty_like(self._w)
        for name, block in self._blocks(w).items():
            block.data.copy_(tensors[name])
        return w, []

    def copy_buffers(self) -> list[torch.Tensor]:
        """Nothing: the network has parameters only."""
        return []

    def restore_buffers(self, buffers: Sequence[torch.Tensor]) -> None:
        """Nothing to put back."""

    def synchronize_buffers(self) -> None:
        """Nothing to agree on."""

    def _blocks(self, tensor: torch.Tensor) -> dict[str, Partitioned]:
        found, before = {}, tensor.shape[:-1]
        for held in self._partition.all_blocks(self._rank):
            rows, columns = held.inputs, held.outputs
            shape = [self._partition.sizes[held.number], self._partition.sizes[held.number - 1]]
            weights = tensor[..., held.weights].unflatten(-1, (rows.count, columns.count)).transpose(-1, -2)
            name, zeros = f"{2 * held.number - 1}", (0,) * len(before)
            start = (*zeros, columns.start, rows.start)
            found[f"{name}.weight"] = Partitioned(weights, (*before, *shape), start, self.saves)
            # Where other ranks hold the biases, or all of the layer, the block is empty.
            biases = tensor[..., held.biases]
            found[f"{name}.bias"] = Partitioned(biases, (*before, shape[0]), (*zeros, columns.start), self.saves)
        return found
