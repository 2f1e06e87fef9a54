"""The curvature of a model in Kronecker factors, from samples that are spread over the ranks.

Every layer with factors has its A and G as lower triangles in one packed vector; behind them lies one number a variable
for all the other variables, the diagonal of their curvature. That is the square of a gradient: errors of different
samples are drawn independently with mean 0, so the square of the sum is in the mean the sum of the squares. It is
averaged over each row of a tensor (over all of a tensor of one dimension), since a single draw of each would put some
near 0 by chance, while rows can differ by orders of magnitude, as those of an embedding do.

Shapes: n variables, p packed numbers, L layers, a and o inputs and outputs of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

import torch

from hpcopt.errors import UsageError
from hpcopt.layout.assignment import balanced_assignment
from hpcopt.objective.curvature.factored_layers import FactoredLayer, Moments, candidates, explains_gradient, traced
from hpcopt.objective.curvature.fisher import OutputErrors, check_kind
from hpcopt.objective.curvature.triangles import pack, triangle_size
from hpcopt.objective.protocol import Batch, Objective, Vector
from hpcopt.random import key64

if TYPE_CHECKING:
    from hpcopt.objective.data_parallel import DataParallelObjective


@dataclass(frozen=True)
class KroneckerLayer:
    """Where a layer's weight (o, a) lies in w, and the bias (o,), which is then the last of its a inputs."""

    weight: slice
    bias: slice | None
    inputs: int
    outputs: int


class PendingFactors:
    """Factors whose reduction is under way."""

    def __init__(self, request: Any, finish: Callable[[Vector], Vector]) -> None:
        self._request, self._finish = request, finish

    def wait(self) -> Vector:
        """All factors (p,), a new vector, the same on all ranks; zeros for a layer that was not called.

        They are not finite where the model was not on some rank.
        """
        return self._finish(self._request.wait())


class KroneckerCurvature:
    """Of an objective whose ranks all hold all variables. *Collective*, one reduction.

    Args:
        objective: model, loss and samples.
        seed: of targets that are drawn.

    Attributes:
        layers: those with factors.
        others: where the tensors of all other variables lie in w.
        size: p.
        weight_decay: what it adds to the diagonal of the curvature of the layers; it is not in the factors.
        other_decay: the same of each of the other variables, 0 for those that do not decay.
    """

    def __init__(self, objective: DataParallelObjective, seed: int) -> None:
        self._objective, self._seed = objective, seed
        parameters = objective.shard.parameters
        self._modules = self._find_layers()
        slices = parameters.slices()
        factored = set(chain.from_iterable((m.weight, m.bias) for m in self._modules))
        self._tensors = [i for i in range(len(slices)) if i not in factored]
        self.layers = [
            KroneckerLayer(slices[m.weight], None if m.bias is None else slices[m.bias], m.inputs, m.outputs)
            for m in self._modules
        ]
        self.others = [slices[i] for i in self._tensors]
        self._sizes = [triangle_size(order) for layer in self.layers for order in (layer.inputs, layer.outputs)]
        self._sizes.append(sum(parameters.counts[i] for i in self._tensors))
        ones = torch.ones(self._sizes[-1], dtype=parameters.dtype, device=parameters.device)
        decay = objective.decay.part(lambda vector: torch.cat([ones[:0], *(vector[each] for each in self.others)]))
        self.other_decay = decay.add_gradient(torch.zeros_like(ones), ones)
        self.size, self.weight_decay = sum(self._sizes), objective.weight_decay
        self._counts = 2 * len(self.layers) + 1
        self._request: Any = None

    def check(self, fisher: str) -> None:
        """Refuse targets that cannot be drawn for the loss. Local, the same on all ranks.

        Raises:
            UsageError: on all ranks.
        """
        try:
            check_kind(self._objective.shard.loss, fisher, self._objective.outputs)
        except UsageError as error:
            raise UsageError(str(error), collective=True) from None

    def offers(self, fisher: str) -> bool:
        """Whether there are layers with factors, and targets for the loss. Local, the same on all ranks."""
        try:
            self.check(fisher)
        except UsageError:
            return False
        return bool(self.layers)

    def begin(self, w: Vector, batch: Batch, fisher: str, number: int) -> PendingFactors:
        """Start the ``number``-th factors of the run, at w on ``batch``. *Collective*, two reductions.

        Args:
            w: (n,).
            batch: the samples.
            fisher: "true" for the Gauss-Newton matrix, by targets drawn from the model; "empirical" for the second
                moments of the gradients.
            number: of the draw; equal numbers draw the same on any number of ranks.
        """
        objective = self._objective
        errors = OutputErrors(objective.shard.loss, fisher, self._seed, number)
        first = objective.samples_before(batch)
        moments = Moments(self._modules, w, key64(self._seed, "positions", number))
        sums = w.new_zeros(self.size + self._counts)
        objective.shard.guarded(lambda: self._sum(w, batch, errors, first, moments, sums), lambda: sums.fill_(math.nan))
        if self._request is not None:
            self._request.wait()  # of a step that failed before it came to that
        self._request = objective.comm.iallreduce(sums, label="factors")
        return PendingFactors(self._request, lambda reduced: self._finished(reduced, batch))

    def divide(
        self, costs: Sequence[float], sizes: Sequence[int], compute: Callable[[int], Vector]
    ) -> list[torch.Tensor]:
        """``compute(i)`` for every i, each on one rank only, balanced by cost. *Collective*, one gathering.

        Args:
            costs: of the items, the same on all ranks.
            sizes: how many numbers each result has.
            compute: gives the result of an item; must not raise.

        Returns:
            All results, the same on all ranks.
        """
        comm, shard = self._objective.comm, self._objective.shard
        owners = balanced_assignment(costs, comm.size)
        order = sorted(range(len(costs)), key=lambda i: owners[i])
        nothing = torch.zeros(0, dtype=shard.parameters.dtype, device=shard.parameters.device)
        own = torch.cat([nothing, *(compute(i) for i in order if owners[i] == comm.rank)])
        counts = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == r) for r in range(comm.size)]
        results = comm.allgatherv(own, counts, label="inverses").split([sizes[i] for i in order])
        return [result for _, result in sorted(zip(order, results, strict=True), key=lambda pair: pair[0])]

    def _find_layers(self) -> list[FactoredLayer]:
        """The layers whose gradients are what their calls make them, as two samples of every rank show."""
        objective, shard = self._objective, self._objective.shard
        layers, few = candidates(shard.module, shard.parameters), shard.inputs[:2]
        wrong = [0.0] * len(layers)
        with objective.comm.together("looking at the layers of the model"):
            # Batch normalisation refuses a single sample.
            if layers and len(few) > 1:
                shard.prepare(objective.initial_vector())
                with shard.stochastic.frozen((0, 0), 0, few.device, may_update=False):
                    wrong = [float(not right) for right in explains_gradient(shard.module, few, layers)]
        found = objective.comm.reduce_scalars([*wrong, 0.0], label="layers")
        return [layer for layer, failed in zip(layers, found, strict=False) if not failed]

    def _sum(self, w: Vector, batch: Batch, errors: OutputErrors, first: int, moments: Moments, into: Vector) -> None:
        """This rank's sums of all factors and of the other variables' gradients, and how many there were of each."""
        shard, samples = self._objective.shard, 0
        *_, others, _ = into.split([*self._sizes, self._counts])
        tensors = [shard.parameters.tensors[i] for i in self._tensors]
        shard.prepare(w)
        for rank, number, at, inputs, targets in shard.pieces(batch):
            if len(inputs) == 1 and shard.stochastic.mixes:
                continue  # batch normalisation refuses a single sample
            with torch.enable_grad(), shard.stochastic.frozen(batch.key, number, w.device, may_update=False, rank=rank):
                with traced(self._modules, moments.add_inputs) as edges:
                    outputs = shard.module(inputs)
                e = errors.draw(outputs, targets, first + at)
                found = torch.autograd.grad(outputs, [edge for _, edge in edges] + tensors, e, allow_unused=True)
            for (layer, _), g in zip(edges, found, strict=False):
                if g is not None:
                    moments.add_gradients(layer, g)
            for part, g in zip(others.split([t.numel() for t in tensors]), found[len(edges) :], strict=True):
                if g is not None:
                    part += g.reshape(-1)
            samples += len(inputs)
        squares = chain.from_iterable(zip(moments.inputs, moments.outputs, strict=True))
        triangles = [pack(square) for square in squares]
        counts = torch.tensor([*moments.rows, *moments.positions, samples], dtype=into.dtype, device=into.device)
        torch.cat([*triangles, others.clone(), counts], out=into)

    def _finished(self, sums: Vector, batch: Batch) -> Vector:
        """The factors of all ranks' sums; their work is counted."""
        self._request = None
        *parts, others, counts = sums.split([*self._sizes, self._counts])
        *numbers, samples = counts.tolist()
        rows, positions = numbers[: len(self.layers)], numbers[len(self.layers) :]
        for inputs, outputs, count in zip(parts[::2], parts[1::2], rows, strict=True):
            inputs.div_(max(count, 1.0))
            outputs.div_(max(samples, 1.0))
        others.square_().div_(max(samples, 1.0))
        shapes = [self._objective.shard.parameters.shapes[i] for i in self._tensors]
        for part, shape in zip(others.split([shape.numel() for shape in shapes]), shapes, strict=True):
            table = part.view(shape[0], -1) if len(shape) > 1 else part.view(1, -1)
            table.copy_(table.mean(1, keepdim=True).expand_as(table))
        self._count(rows, positions, batch)
        return sums[: self.size]

    def _count(self, rows: Sequence[float], positions: Sequence[float], batch: Batch) -> None:
        """Operations of a forward pass, of a backward pass to the outputs, and of both factors, over a gradient's."""
        spent, gradient = 0.0, 0.0
        for layer, seen, passed in zip(self.layers, rows, positions, strict=True):
            a, o = layer.inputs, layer.outputs
            spent += passed * (2 * a * o + o * o) + seen * a * a
            gradient += passed * 3 * a * o
        part = batch.total / self._objective.samples
        self._objective.work.gradients += part * (spent / gradient if gradient > 0 else 1.0)


class KroneckerObjective(Objective, Protocol):
    """An objective whose ranks may all hold the layers of a model whole."""

    @property
    def kronecker(self) -> KroneckerCurvature:
        """The curvature in Kronecker factors, layer by layer. The first call is *collective*.

        Raises:
            UsageError: on all ranks, when the ranks do not hold the layers whole.
        """
        ...
