"""w in slices on the ranks, gathered while the model is already evaluated: a layer waits for its own part only.

Parts follow each other as layers do, from the first to the last. Collectives that do not block must be started in the
same order on all ranks: all of them are before the evaluation, and all are waited for when it ends or fails, so that
no rank depends on how far another one comes.
Shapes: n numbers of w on this rank, N of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from hpcopt.comm.communicator import Communicator
from hpcopt.layout.block import Block
from hpcopt.objective.buckets import cut_forward
from hpcopt.objective.protocol import Batch, Vector
from hpcopt.objective.shard import Shard

LABEL = "variables"
"""Of gathered vectors in the ledger."""

PART_BYTES = 8 * 2**20
"""Least size of a part: a third of a second at 200 megabits a second, and far more than what starting a call takes."""

REHEARSED = 2
"""Samples on which a rank finds out whether layers wait for all that the model needs."""

SAME = 1e-3
"""Relative difference of two losses at one point, beyond rounding in any model."""


class Coming(Protocol):
    """A part on its way."""

    def wait(self) -> Any:
        """Return when it is there."""
        ...

    def test(self) -> bool:
        """Whether it is there."""
        ...


class Gathering:
    """Gathers w for evaluations of a model on this rank's samples.

    A parameter may be needed before the module that owns it is called, by a parent that reads it for itself. A
    rehearsal finds out, once and on each rank for itself, with numbers that are missing until they are waited for; a
    rank where that changes the loss waits for all parts first.

    Args:
        shard: module, loss and samples of this rank.
        comm: the ranks.
        slices: of w, one a rank.
        part_bytes: least size of a part but for the last one; a vector of one part comes in one call.
    """

    def __init__(self, shard: Shard, comm: Communicator, slices: Sequence[Block], part_bytes: int) -> None:
        parameters, places = shard.parameters, shard.parameters.slices()
        self._shard, self._comm, self._slices = shard, comm, slices
        groups = cut_forward(parameters.counts, max(1, part_bytes // parameters.dtype.itemsize))
        self._parts = [slice(places[group[0]].start, places[group[-1]].stop) for group in groups]
        inside = [[own.within(part.start, part.stop) for own in slices] for part in self._parts]
        self._counts = [[each.count for each in of_part] for of_part in inside]
        first = slices[comm.rank].start
        self._mine = [Block(each.start - first, each.count).slice for each in (row[comm.rank] for row in inside)]
        self._long = comm.size > 1 and len(groups) > 1
        part_of = {id(parameters.tensors[index]): number for number, group in enumerate(groups) for index in group}
        self._needs = _needs(shard.module, part_of)
        self._coming: dict[int, Coming] = {}
        self._whole: Vector | None = None
        self._waits_by_layer: bool | None = None

    def whole(self, w: Vector) -> Vector:
        """All ranks' slices (n,) as one new vector (N,). *Collective*."""
        gathered: Vector = self._comm.allgatherv(w, [own.count for own in self._slices], label=LABEL)
        return gathered

    @contextmanager
    def beside(self, w: Vector) -> Iterator[Vector]:
        """The vector (N,) of all ranks' slices (n,), for evaluations of the module within, complete after it.

        *Collective*. The vector is written to again the next time.
        """
        if not self._long:
            yield self.whole(w)
            return
        if self._whole is None:
            self._whole = w.new_empty(self._shard.parameters.size)
        try:
            self._start(w, self._whole)
            if not self._waits_by_layer:
                self._wait()
            with self._layers_wait() if self._waits_by_layer else nullcontext():
                if self._waits_by_layer is None:
                    self._waits_by_layer = self._rehearse(self._whole)
                yield self._whole
        finally:
            self._wait()

    def _start(self, w: Vector, whole: Vector) -> None:
        for number, (part, mine, counts) in enumerate(zip(self._parts, self._mine, self._counts, strict=True)):
            self._coming[number] = self._comm.iallgatherv(w[mine], whole[part], counts, label=LABEL)

    def _wait(self) -> None:
        while self._coming:
            self._coming.pop(next(iter(self._coming))).wait()

    @contextmanager
    def _layers_wait(self) -> Iterator[None]:
        """Within it a module that is called has its parameters first. Nothing remains at the modules."""
        hook = register_module_forward_pre_hook(self._before)
        try:
            yield
        finally:
            hook.remove()

    def _before(self, module: torch.nn.Module, inputs: Any) -> None:
        """Wait for what a module needs; let an MPI without a progress thread move the other parts."""
        for number in self._needs.get(module, ()):
            if number in self._coming:
                self._coming.pop(number).wait()
        for coming in self._coming.values():
            coming.test()

    def _rehearse(self, whole: Vector) -> bool | None:
        """Whether the loss is the same where numbers are missing until layers wait for them. Local.

        None where the loss is not finite anyway, which tells nothing.

        The model's buffers and its random numbers are as if this had not been.
        """
        buffers = [(buffer, buffer.clone()) for buffer in self._shard.module.buffers()]
        few = min(REHEARSED, len(self._shard.inputs))
        batch = Batch(torch.arange(few, device=whole.device), few, few)
        late = torch.full_like(whole, torch.nan)
        try:
            expected = self._shard.loss_sum(whole, batch)
            self._coming = {number: _Late(late[part], whole[part]) for number, part in enumerate(self._parts)}
            with self._layers_wait():
                found = self._shard.loss_sum(late, batch)
        except Exception:
            # Whatever a model makes of missing numbers, or of so few samples.
            return False
        finally:
            self._coming = {}
            for buffer, kept in buffers:
                buffer.copy_(kept)
        return math.isclose(found, expected, rel_tol=SAME) if math.isfinite(expected) else None


class _Late(NamedTuple):
    """A part that is there as soon as it is waited for."""

    target: Vector
    source: Vector

    def wait(self) -> Any:
        """Copy it."""
        self.target.copy_(self.source)

    def test(self) -> bool:
        """It does not come by itself."""
        return False


def _needs(module: torch.nn.Module, part_of: dict[int, int]) -> dict[torch.nn.Module, list[int]]:
    """The parts that each module waits for: those of its own parameters."""
    found = {}
    for each in module.modules():
        # Attention reads the parameters of its last layer without calling it.
        own = each.parameters(recurse=isinstance(each, torch.nn.MultiheadAttention))
        if parts := {part_of[id(tensor)] for tensor in own if id(tensor) in part_of}:
            found[each] = sorted(parts)
    return found
