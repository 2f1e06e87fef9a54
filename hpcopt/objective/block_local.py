"""The local part of a rank that varies one block of the variables, on all samples of its group.

Shapes: n variables, of which m are this rank's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hpcopt.layout.blocks import runs
from hpcopt.objective.local import LocalObjective
from hpcopt.objective.protocol import Vector
from hpcopt.objective.shard import Shard
from hpcopt.objective.weight_decay import WeightDecay


class BlockLocalObjective(LocalObjective):
    """f_d as a function of this rank's m variables; all others stay where the phase began. Never communicates.

    Its work counts a gradient of the block as one of all variables, although the backward pass is shorter.

    Args:
        shard: module, loss and samples of the group.
        decay: weight decay, in which all n variables count.
        samples: N.
        tensors: numbers of the parameter tensors that are this rank's, ascending.
    """

    def __init__(self, shard: Shard, decay: WeightDecay, samples: int, tensors: Sequence[int]) -> None:
        super().__init__(shard, decay, samples)
        parameters = shard.parameters
        slices = parameters.slices()
        self._tensors = [parameters.tensors[index] for index in tensors]
        self._runs = runs(slices[index] for index in tensors)
        self._counts = [run.count for run in self._runs]
        self._frozen = parameters.copy()
        self._decay_here = decay.part(self.take)

    def begin(self, w: Vector) -> None:
        """A local phase begins at w (n,), which is copied."""
        self._frozen.copy_(w)
        super().begin(w)

    def take(self, vector: Vector) -> Vector:
        """This rank's part (m,) of a vector (n,), a copy."""
        return torch.cat([vector[run.slice] for run in self._runs])

    def put(self, own: Vector) -> Vector:
        """A new vector (n,): ``own`` (m,) at this rank's variables and 0 elsewhere."""
        vector = own.new_zeros(len(self._frozen))
        self._write(own, vector)
        return vector

    def _point(self, x: Vector) -> Vector:
        self._write(x, self._frozen)
        return self._frozen

    @property
    def _own_decay(self) -> WeightDecay:
        return self._decay_here

    def _write(self, own: Vector, vector: Vector) -> None:
        for run, part in zip(self._runs, own.split(self._counts), strict=True):
            vector[run.slice] = part
