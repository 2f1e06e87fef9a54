"""Loss sums and their gradients on the samples of this rank, with no communication.

Shapes: n parameters, b samples of this rank in a batch, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple, TypeAlias, TypeVar

import torch

from hpcopt.layout.block import block
from hpcopt.objective.augmentation import Augment
from hpcopt.objective.losses import Loss
from hpcopt.objective.module_function import ModuleFunction
from hpcopt.objective.parameters import FlatParameters
from hpcopt.objective.protocol import Batch, Vector
from hpcopt.objective.stochastic import StochasticState

Gradients: TypeAlias = Sequence[torch.Tensor | None]

T = TypeVar("T")


class Part(NamedTuple):
    """One of ``of`` contiguous parts of a batch, with the random numbers of the rank that evaluates it for all."""

    number: int
    of: int
    rank: int


class Piece(NamedTuple):
    """The samples of one forward pass.

    Attributes:
        rank: whose random numbers they get.
        number: of the piece within that rank's part.
        first: position of its first sample among those that this rank holds of the batch.
        inputs: (b, ...).
        targets: (b, ...).
    """

    rank: int
    number: int
    first: int
    inputs: torch.Tensor
    targets: torch.Tensor


class Evaluated(NamedTuple):
    """A piece of a batch, evaluated.

    Attributes:
        loss: its sum, which does not know how it was made.
        outputs: what is differentiated.
        cotangent: of these outputs.
    """

    loss: torch.Tensor
    outputs: torch.Tensor
    cotangent: torch.Tensor


class Shard:
    """A module, a loss and the samples that this rank holds, or a part of them in every batch.

    Args:
        module: the network; its parameters become views of the vector under evaluation.
        loss: sums over samples.
        inputs: (samples, ...) in the precision of the parameters, or integers for embeddings.
        targets: (samples,) labels or (samples, C) values.
        parameters: the flat vector over the module's parameters.
        stochastic: holds dropout and running statistics still.
        micro_batch: most samples in one forward pass; None for no limit. Larger batches are accumulated.
        parts: what is evaluated of every batch; by default all that this rank holds of it.
        augment: changes the samples of every batch, but not those of ``evaluated``.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        loss: Loss,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        parameters: FlatParameters,
        stochastic: StochasticState,
        micro_batch: int | None = None,
        parts: Sequence[Part] | None = None,
        augment: Augment | None = None,
    ) -> None:
        self.module, self.loss = module, loss
        self.inputs, self.targets = inputs, targets
        self.parameters, self.stochastic = parameters, stochastic
        self.micro_batch, self.augment = micro_batch, augment
        self.parts = (Part(0, 1, stochastic.rank),) if parts is None else tuple(parts)

    def with_parts(self, parts: Sequence[Part]) -> Shard:
        """The same module and samples, of which other parts are evaluated."""
        return Shard(
            *(self.module, self.loss, self.inputs, self.targets, self.parameters, self.stochastic, self.micro_batch),
            *(parts, self.augment),
        )

    def evaluated(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of the one part of all samples that is evaluated, without a copy."""
        (part,) = self.parts
        mine = block(len(self.inputs), part.of, part.number).slice
        return self.inputs[mine], self.targets[mine]

    @cached_property
    def function(self) -> ModuleFunction:
        """The module as a function of w and inputs, in the mode that it is in."""
        return ModuleFunction(self.module, self.parameters)

    @property
    def deterministic(self) -> bool:
        """Whether an evaluation on given samples is the same whatever the batch's key: nothing is drawn."""
        return self.augment is None and not self.stochastic.draws

    def chunks(self, batch: Batch) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Inputs and targets of what is evaluated of ``batch``, at most ``micro_batch`` samples at a time."""
        return ((piece.inputs, piece.targets) for piece in self.pieces(batch))

    def loss_sum(self, w: Vector, batch: Batch) -> float:
        """Sum of the losses at w over what is evaluated of ``batch``."""
        self.prepare(w)
        losses = []
        for rank, number, _, inputs, targets in self.pieces(batch):
            with torch.no_grad(), self.stochastic.frozen(batch.key, number, w.device, may_update=False, rank=rank):
                losses.append(self.loss.sum(self.module(inputs), targets))
        return _total(losses)

    def gradient_sum(
        self, w: Vector, batch: Batch, scale: float, out: Vector, tensors: Sequence[torch.Tensor] | None = None
    ) -> float:
        """Write ``scale`` times the gradient of the loss sum into ``out`` and return the loss sum itself.

        Args:
            w: where, (n,).
            batch: the samples.
            scale: factor of the gradient.
            out: (n,), or as long as ``tensors`` together.
            tensors: of the module's parameters, those whose gradient is wanted; the backward pass does no more work
                than these need. None for all.
        """
        self.prepare(w)
        return self.accumulate(self._losses(w, batch, scale), out, tensors)

    def accumulate(
        self, evaluated: Iterable[Evaluated], out: Vector, tensors: Sequence[torch.Tensor] | None = None
    ) -> float:
        """As ``gradient_sum``, of pieces each of which is asked for when the one before is differentiated.

        Outputs that need no gradient depend on no variable, as the features of a model that is its last layer alone.
        """
        wanted = self.parameters.tensors if tensors is None else tensors
        losses: list[torch.Tensor] = []
        empty = True
        for loss, outputs, cotangent in evaluated:
            losses.append(loss)
            if not outputs.requires_grad:
                continue
            gradients = pull([outputs], [cotangent], wanted)
            if empty:
                _flat(gradients, wanted, out)
            else:
                out.add_(_flat(gradients, wanted))
            empty = False
        if empty:
            out.zero_()
        return _total(losses)

    def backward_sum(self, w: Vector, batch: Batch, scale: float) -> float:
        """Backward pass of ``scale`` times the loss sum, for hooks on the module's tensors; returns the loss sum.

        The batch must fit in one pass (no ``micro_batch`` below it).
        """
        self.prepare(w)
        for inputs, targets in self.chunks(batch):
            with self.stochastic.frozen(batch.key, 0, w.device, may_update=True):
                loss = self.loss.sum(self.module(inputs), targets)
                (loss * scale).backward()
            return float(loss.detach())
        return 0.0

    def guarded(self, evaluate: Callable[[], T], otherwise: Callable[[], T]) -> T:
        """``evaluate()``; where a model may fail on one rank alone, ``otherwise()`` after that."""
        return evaluate()

    def pieces(self, batch: Batch) -> Iterator[Piece]:
        """The forward passes over what is evaluated of ``batch``."""
        for rank, number, first, count in _cuts(self.parts, batch.count, self.micro_batch):
            chosen: slice | torch.Tensor = slice(first, first + count)
            if batch.indices is not None:
                chosen = batch.indices if count == batch.count else batch.indices[chosen]
            inputs = self.inputs[chosen]
            if self.augment is not None:
                inputs = self.augment(inputs, batch.key[0], chosen)
            yield Piece(rank, number, first, inputs, self.targets[chosen])

    def _losses(self, w: Vector, batch: Batch, scale: float) -> Iterator[Evaluated]:
        """Of each piece the loss, whose terms are differentiated: their sum would be more work for the same numbers."""
        for rank, number, _, inputs, targets in self.pieces(batch):
            with self.stochastic.frozen(batch.key, number, w.device, may_update=True, rank=rank):
                terms = self.loss.terms(self.module(inputs), targets)
                known = terms.detach()
                yield Evaluated(known.sum(dtype=torch.float64), terms, torch.full_like(known, scale))

    def prepare(self, w: Vector) -> None:
        """The module is at w (n,), in training mode."""
        self.parameters.bind(w)
        if not self.module.training:
            self.module.train()


@lru_cache
def _cuts(parts: Sequence[Part], count: int, most: int | None) -> Sequence[tuple[int, int, int, int]]:
    """Of each piece of a batch of which this rank holds ``count`` samples: rank, number, first sample and how many."""
    found = []
    for part in parts:
        own = block(count, part.of, part.number)
        step = most or max(count, 1)
        starts = range(own.start, own.stop, step)
        found += [(part.rank, number, first, min(step, own.stop - first)) for number, first in enumerate(starts)]
    return found


def pull(
    outputs: Sequence[torch.Tensor],
    cotangents: Sequence[torch.Tensor],
    tensors: Sequence[torch.Tensor],
    *,
    keep_graph: bool = False,
) -> Gradients:
    """J^T u with the Jacobian J of outputs and u one cotangent for each, by tensor; None for one that took no part.

    As ``torch.autograd.grad``, whose questions to every tensor take as long as what a small network computes.
    """
    engine = torch.autograd.Variable._execution_engine
    found: Gradients = engine.run_backward(
        tuple(outputs), tuple(cotangents), keep_graph, False, tuple(tensors), allow_unreachable=True,
        accumulate_grad=False,
    )  # fmt: skip
    return found


def _flat(gradients: Gradients, tensors: Sequence[torch.Tensor], out: Vector | None = None) -> Vector:
    """Gradients one after the other; of a tensor that took no part in the loss, 0."""
    given = zip(gradients, tensors, strict=True)
    return torch.cat([t.new_zeros(t.numel()) if g is None else g.ravel() for g, t in given], out=out)


def _total(losses: Sequence[torch.Tensor]) -> float:
    """The sum in float64, with one wait for a device however many there are."""
    if len(losses) == 1:
        return losses[0].item()
    return float(sum(torch.stack(list(losses)).tolist())) if losses else 0.0
