"""A data-parallel objective as features and a linear last layer.

Shapes: n parameters, m columns of the design with that of the bias, t outputs, N rows of a batch over all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

from hpcopt.comm.own_operation import allreduce_by
from hpcopt.errors import UsageError
from hpcopt.objective.figures import chunk_of
from hpcopt.objective.losses import Squared
from hpcopt.objective.protocol import Batch, Vector
from hpcopt.objective.reductions import tell
from hpcopt.objective.separable.last_layer import LastLayer
from hpcopt.objective.separable.protocol import Few, Normal, Rows
from hpcopt.objective.shard import Evaluated, Shard
from hpcopt.objective.stochastic import evaluation

if TYPE_CHECKING:
    from hpcopt.objective.data_parallel import DataParallelObjective

Piece = tuple[torch.Tensor, torch.Tensor]
"""Features and targets of some samples."""


class SeparableModel:
    """The model of an objective, cut before its last layer; see ``hpcopt.objective.separable.protocol``. *Collective*.

    Raises:
        UsageError: on all ranks, see there.
    """

    def __init__(self, objective: DataParallelObjective) -> None:
        self._objective, self._comm = objective, objective.comm
        shard = objective.shard
        with self._comm.together("looking for the model's last layer"):
            if not isinstance(shard.loss, Squared):
                raise UsageError(
                    f"the loss is {shard.loss.name}, but a last layer can be solved for with the squared loss only. "
                    'Set loss.name = "squared"; labels then stand for one-hot vectors.'
                )
            self.layer = LastLayer(shard.module, shard.parameters)
            if len(shard.inputs):
                self._try(shard)
        self.width, self.outputs, self.alone = self.layer.width, self.layer.outputs, self._comm.size == 1
        self.blocks, self.bias, self._positions = self.layer.blocks, self.layer.bias, 0
        self.columns = tuple(tuple(own[: len(own) - self.bias].tolist()) for own in self.blocks)
        self.widths = tuple(map(len, self.blocks))
        self._agree_on_positions()

    def weights(self, w: Vector) -> torch.Tensor:
        """W (t, m) in a vector (n,), float64 on the CPU, a copy."""
        return self.layer.weights(w)

    def put(self, w: Vector, weights: torch.Tensor) -> None:
        """Write W (t, m) into a vector (n,)."""
        self.layer.put(w, weights)

    def decay(self, w: Vector) -> float:
        """What weight decay adds to the objective at w (n,)."""
        return self._objective.decay.value(w)

    def features(self, w: Vector, batch: Batch, weights: torch.Tensor) -> BatchFeatures:
        """The features of a batch at w (n,), and residuals with ``weights`` (t, m). *Collective* at first."""
        return BatchFeatures(self._objective, self.layer, w, batch, weights, self._count_rows(batch))

    def everything(self, w: Vector) -> BatchFeatures:
        """The features of all training samples at w (n,), as they are evaluated; residuals are -C. *Collective*."""
        objective = self._objective
        if objective.shard.stochastic.runs:
            objective.estimate_statistics(w)
            objective.work.values += 1.0
        objective.model.synchronize_buffers()
        objective.work.values += 1.0
        weights = torch.zeros(self.outputs, self.width, dtype=torch.float64)
        batch = objective.full_batch
        return EvaluatedFeatures(objective, self.layer, w, batch, weights, self._count_rows(batch))

    def sum(self, buffer: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, in place. *Collective*."""
        return self._comm.allreduce(buffer, label="last layer") if not self.alone else buffer

    def combine(self, buffer: torch.Tensor, by: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """All ranks' vectors combined by an operation, lower ranks first. *Collective*."""

        def combined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            # Copies, since MPI's memory may be read-only, which torch warns of.
            return by(torch.from_numpy(first.copy()), torch.from_numpy(second.copy())).numpy()

        return torch.from_numpy(allreduce_by(self._comm, buffer.numpy(), combined, label="last layer"))

    def gather(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The rows of all ranks for each part, one below the other. *Collective*, two calls."""
        if self.alone:
            return list(parts)
        told = tell(self._comm, [part.numel() for part in parts], "last layer")
        counts = [[int(count) for count in of_rank] for of_rank in told]
        buffer = torch.cat([part.reshape(-1) for part in parts])
        gathered = self._comm.allgatherv(buffer, [sum(of_rank) for of_rank in counts], label="last layer")
        pieces = gathered.split(list(chain.from_iterable(counts)))
        return [torch.cat(pieces[number :: len(parts)]).view(-1, part.shape[1]) for number, part in enumerate(parts)]

    def settle(self, buffer: torch.Tensor) -> torch.Tensor:
        """Rank 0's numbers on all ranks, in place. *Collective*."""
        return self._comm.bcast(buffer, label="last layer") if not self.alone else buffer

    def _count_rows(self, batch: Batch) -> int:
        """N, for which a sample must have been seen. *Collective* until one was, one number."""
        if not self._positions:
            shard = self._objective.shard
            if len(shard.inputs):
                shard.guarded(lambda: self._try(shard), lambda: None)
            self._agree_on_positions()
        return batch.total * max(1, self._positions)

    def _agree_on_positions(self) -> None:
        """How many the outputs of a sample have, from a rank that has seen one; 0 as long as none has. *Collective*."""
        self._positions = int(self._comm.reduce_scalars([self.layer.positions], op="max", label="samples")[0])

    @torch.no_grad()
    def _try(self, shard: Shard) -> None:
        with evaluation(shard.module):
            self.layer.features(shard.inputs[:1])


class BatchFeatures:
    """The features of one batch at one point.

    A batch that is evaluated in one piece keeps its graph; the pieces of a larger one are evaluated twice.

    Attributes:
        count: N.
    """

    def __init__(
        self,
        objective: DataParallelObjective,
        layer: LastLayer,
        w: Vector,
        batch: Batch,
        weights: torch.Tensor,
        count: int,
    ) -> None:
        self._objective, self._layer, self._w, self._batch, self._weights = objective, layer, w, batch, weights
        self._shard, self.count = objective.shard, count
        self._kept = self._keep()

    def rows(self) -> Iterator[Rows]:
        """This rank's rows, in parts, each made when it is asked for."""
        rows = self._rows()
        while (part := self._shard.guarded(lambda: next(rows, None), lambda: None)) is not None:
            yield part

    def few(self, most: int) -> Few | None:
        """All of a batch that this rank alone has, if they are in one piece, of one block, and at most so many."""
        if self._kept is None or len(self._kept) != 1 or self.count > most:
            return None
        return self._layer.few(*self._kept[0], 1 / math.sqrt(self._batch.total))

    def normal(self) -> list[Normal]:
        """What Gram matrices say of this rank's rows, for each block."""

        def summed() -> list[Normal]:
            """Over the pieces of the samples."""
            total: list[Normal] = []
            for features, targets in self._given():
                new = self._layer.normal(features, targets, self._weights, scale)
                total = list(map(_both, total, new)) if total else new
            return total or self._layer.no_rows()

        scale = 1 / math.sqrt(self._batch.total)
        return self._shard.guarded(summed, self._layer.no_rows)

    def value_and_gradient(self, weights: torch.Tensor) -> tuple[float, Vector]:
        """The objective with ``weights`` in the last layer, and its gradient in the others. *Collective*."""
        scale = 1.0 / self._batch.total

        def evaluate(out: Vector) -> float:
            """This rank's part of both, its gradient into ``out``."""

            def nothing() -> float:
                out.zero_()
                return math.nan

            evaluated, own, tensors = self._evaluated(weights, scale), out, None
            if start is not None:
                own, tensors = out[:start], self._layer.others
                out[start:].zero_()
            return self._shard.guarded(lambda: self._shard.accumulate(evaluated, own, tensors), nothing)

        start = self._layer.start
        loss, gradient = self._objective.reduced_gradient(self._w, self._batch, evaluate)
        for place in self._layer.places if start is None else [slice(start, None)]:
            gradient[place] = 0  # but for weight decay it is
        return loss, gradient

    def _evaluated(self, weights: torch.Tensor, scale: float) -> Iterator[Evaluated]:
        """This rank's pieces with ``weights``, their gradients times ``scale``. Of the squared loss these are known."""
        for features, targets in self._pieces() if self._kept is None else self._kept:
            loss, cotangent = self._layer.loss_and_cotangent(features, targets, weights, scale)
            yield Evaluated(loss, features, cotangent)

    def _keep(self) -> list[Piece] | None:
        micro = self._shard.micro_batch
        if micro is not None and self._batch.count > micro:
            return None
        return self._shard.guarded(lambda: list(self._pieces()), list[Piece])

    def _rows(self) -> Iterator[Rows]:
        scale = 1 / math.sqrt(self._batch.total)
        for features, targets in self._given():
            yield from self._layer.rows(features, targets, self._weights, scale)

    def _given(self) -> Iterable[Piece]:
        """The pieces where nothing is to be differentiated."""
        return torch.no_grad()(self._pieces)() if self._kept is None else self._kept

    def _pieces(self) -> Iterator[Piece]:
        shard = self._shard
        shard.prepare(self._w)
        for rank, number, _, inputs, targets in shard.pieces(self._batch):
            with shard.stochastic.frozen(self._batch.key, number, self._w.device, may_update=True, rank=rank):
                features = self._layer.features(inputs)
            yield features, targets


class EvaluatedFeatures(BatchFeatures):
    """Features without a graph, as the module is evaluated: no dropout, no augmentation, running statistics."""

    def _keep(self) -> None:
        return None

    def _pieces(self) -> Iterator[Piece]:
        shard = self._shard
        shard.prepare(self._w)
        samples = shard.evaluated()
        step = chunk_of(samples[0], shard.micro_batch)
        for inputs, targets in zip(*(part.split(step) for part in samples), strict=True):
            if len(inputs):
                with evaluation(shard.module):
                    features = self._layer.features(inputs)
                yield features, targets


def _both(one: Normal, other: Normal) -> Normal:
    """Those of the rows of both."""
    return Normal(one.gram + other.gram, one.cross + other.cross, one.square + other.square)
