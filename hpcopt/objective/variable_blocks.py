"""f(w) on a grid of ranks: a row of the grid shares the samples of a shard, a column varies the same block of w.

Evaluations for all ranks are not repeated in a row: every rank takes its part of the row's samples in the batch. In a
local phase every rank evaluates all samples of its row, as a function of the variables of its column.
Shapes: n parameters, R = D V ranks in D rows and V columns; rank = row V + column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.layout.block import blocks
from hpcopt.layout.blocks import ParameterGroup, divide_groups, variable_grid
from hpcopt.objective.augmentation import Augment
from hpcopt.objective.block_local import BlockLocalObjective
from hpcopt.objective.data_parallel import BUCKET_BYTES, DataParallelObjective
from hpcopt.objective.losses import Loss
from hpcopt.objective.parameters import FlatParameters
from hpcopt.objective.protocol import Batch, Vector
from hpcopt.objective.reductions import Packed
from hpcopt.objective.shard import Part


class VariableBlockObjective(DataParallelObjective):
    """The mean loss with D shards of the samples, and V blocks of the variables for local phases. *Collective*.

    With D = R it is ``DataParallelObjective``. A method without a local phase gains nothing from D < R: its ranks hold
    more samples and do the same work.

    Args:
        model: as of ``DataParallelObjective``.
        loss: as of ``DataParallelObjective``.
        inputs: the samples of shard ``rank // V``, (samples, ...): the same on the V ranks of a row.
        targets: their labels (samples,) or values (samples, C).
        comm: all ranks.
        shards: D, a divisor of the number of ranks.
        weight_decay: coefficient of |w|^2 / 2.
        decay_norms: whether that is also of scale and shift of torch's normalisations.
        micro_batch: most samples in one forward pass on a rank; larger batches are accumulated.
        bucket_bytes: size of the pieces in which a long gradient is reduced during the backward pass.
        seed: of dropout masks.
        augment: as ``DataParallelObjective`` has it.
        key: what the user calls ``shards``, for messages.

    Attributes:
        grid: D rows and V columns.

    Raises:
        UsageError: on all ranks, when ``shards`` does not divide the ranks, the ranks of a row hold different samples,
            the model has too few modules for V blocks, or as ``DataParallelObjective`` does.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss: str | Loss | Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        inputs: torch.Tensor | np.ndarray,
        targets: torch.Tensor | np.ndarray,
        comm: Communicator,
        *,
        shards: int = 1,
        weight_decay: float = 0.0,
        decay_norms: bool = True,
        micro_batch: int | None = None,
        bucket_bytes: int = BUCKET_BYTES,
        seed: int = 0,
        augment: Augment | None = None,
        key: str = "shards",
    ) -> None:
        with comm.together("arranging the ranks"):
            self.grid = variable_grid(comm.size, shards, key)
        self._row, self._column = self.grid.coordinates(comm.rank)
        super().__init__(
            *(model, loss, inputs, targets, comm),
            weight_decay=weight_decay,
            decay_norms=decay_norms,
            micro_batch=micro_batch,
            bucket_bytes=bucket_bytes,
            seed=seed,
            augment=augment,
        )
        self._check_rows()
        with comm.together("dividing the variables"):
            groups = module_groups(model, self.shard.parameters)
            self._tensors = divide_groups(groups, self.grid.columns, key)
        if self.grid.columns > 1:
            self._use_blocks()

    @property
    def layout(self) -> dict[str, Any]:
        """How samples and variables are spread over the ranks, for the record."""
        counts = self.shard.parameters.counts
        sizes = [sum(counts[index] for index in tensors) for tensors in self._tensors]
        return {"layout": "variables", "grid": list(self.grid), "block_sizes": sizes}

    @property
    def blocks(self) -> Sequence[int]:
        """The column of every rank."""
        return [self.grid.coordinates(rank)[1] for rank in range(self.grid.size)]

    def value_and_gradients(self, w: Vector, batch: Batch) -> tuple[float, Vector, float, Vector]:
        """f(w), its gradient, and f_d(w) of this row with its gradient, from one evaluation. *Collective*.

        With one row, one reduction. Else one of n numbers in the row, one of n / V in the column, and the columns'
        results are gathered in the row.
        """
        if self.grid.columns == 1:
            return super().value_and_gradients(w, batch)
        if self.grid.rows == 1:
            value, gradient = self.value_and_gradient(w, batch)
            return value, gradient, value, gradient.clone()
        packed, scale = self._new_buffer(w), 1.0 / batch.total
        loss = self.shard.gradient_sum(w, batch, scale, packed.vector)
        loss, flag = packed.sum(self._rows, (loss * scale, self.flag), "gradient")
        factor = batch.total / max(batch.count, 1)
        decay = self.decay.value(w)
        own = loss * factor + decay, self.decay.add_gradient(packed.vector * factor, w)
        if self._row == 0:
            packed.write((loss + decay, flag))
        summed = Packed(self._over_rows(packed.buffer), self.size)
        self.release(packed.vector)
        return self._reduced(summed, summed.read(), w, batch), summed.vector, *own

    def free(self) -> None:
        """Give back the communicators of row and column. *Collective*."""
        if self.grid.rows > 1 and self.grid.columns > 1:
            self._rows.free()
            self._columns.free()

    def _over_rows(self, buffer: Vector) -> Vector:
        """The sum over the rows of a buffer that is the same within each, with the same bits on all ranks.

        Every number is summed in one column only: two columns may add in different orders. The scalars behind the
        gradient are of the last column, since their digits belong together.
        """
        counts = [part.count for part in blocks(self.size, self.grid.columns)]
        counts[-1] += len(buffer) - self.size
        start = sum(counts[: self._column])
        mine = self._columns.allreduce(buffer[start : start + counts[self._column]], label="gradient")
        summed: Vector = self._rows.allgatherv(mine, counts, label="gradient")
        return summed

    def _samples_before(self, counts: Sequence[float]) -> int:
        """Those of the rows before this one; the ranks of a row hold the same samples."""
        return int(sum(counts[: self._row * self.grid.columns : self.grid.columns]))

    @property
    def _own_part(self) -> Part:
        return Part(self._column, self.grid.columns, self.comm.rank)

    def _use_blocks(self) -> None:
        """The local part of this rank's column, and the communicators of row and column. *Collective*."""
        shard, columns = self.shard, self.grid.columns
        # Masks and batch statistics must be those of the evaluations for all ranks, which the row shares.
        row = [Part(j, columns, rank) for j, rank in enumerate(self.grid.row_members(self._row))]
        whole = shard.with_parts(row if shard.stochastic.by_piece else [Part(0, 1, self.comm.rank)])
        self.local = BlockLocalObjective(whole, self.decay, self.samples, self._tensors[self._column])
        if self.grid.rows > 1:
            self._rows = self.comm.split(self._row, self._column)
            self._columns = self.comm.split(self._column, self._row)

    def _check_rows(self) -> None:
        """Refuse ranks of a row that hold different samples. *Collective*."""
        prints = self.comm.allgather_objects(
            (len(self.shard.inputs), _checksum(self.shard.inputs), _checksum(self.shard.targets)), label="samples"
        )
        for row in range(self.grid.rows):
            first, *others = self.grid.row_members(row)
            for other in others:
                if prints[other] != prints[first]:
                    raise UsageError(
                        f"rank {first} and rank {other} are to share the samples of shard {row}, but hold different "
                        f"ones ({prints[first][0]} and {prints[other][0]} of them). Give all {self.grid.columns} ranks "
                        f"of a shard the same inputs and targets: rank r belongs to shard r // {self.grid.columns}.",
                        collective=True,
                    )


def module_groups(model: torch.nn.Module, parameters: FlatParameters) -> list[ParameterGroup]:
    """The tensors of every module that owns some itself; a tensor of several modules is of the first one."""
    numbers = {id(tensor): index for index, tensor in enumerate(parameters.tensors)}
    groups = []
    for name, module in model.named_modules():
        own = [numbers.pop(id(p)) for p in module.parameters(recurse=False) if id(p) in numbers]
        if own:
            size = sum(parameters.counts[index] for index in own)
            groups.append(ParameterGroup(name or type(module).__name__, tuple(own), size))
    return groups


def _checksum(array: torch.Tensor) -> int:
    """A sum over the bits, which does not depend on the order of summation, and so not on the processor."""
    numbers = array.contiguous().view(-1)
    if numbers.is_floating_point():
        numbers = numbers.view(torch.int32)
    return int(numbers.sum())
