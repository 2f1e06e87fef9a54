"""f(w) with samples and w sharded: a rank evaluates the whole model, but keeps one slice of w and of its gradient.

An evaluation gathers w and scatters the sum of the gradient, which together move as much as the one reduction of
replicated state (ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054, stage 1). What a method keeps between evaluations,
vectors of n numbers, is 1/R of what it is where every rank holds all of w.
Shapes: n numbers of w on this rank, N of the whole, R ranks, B samples in a batch, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hpcopt.errors import UsageError
from hpcopt.layout.slices import row_slices
from hpcopt.objective import exact_sum
from hpcopt.objective.curvature.signs import signs
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.linearization import ImplicitLinearization
from hpcopt.objective.network.variables import CutVariables
from hpcopt.objective.problem import Samples, Sums
from hpcopt.objective.protocol import Batch, Vector, Work
from hpcopt.objective.sharded.gathering import PART_BYTES, Gathering
from hpcopt.objective.sharded.model import ShardedModel


class ShardedStateObjective(CutVariables):
    """The mean loss over samples that are spread over the ranks, as a function of slices of w. *Collective*.

    Args:
        whole: the same of the whole w, which this evaluates and which must not be used besides.
        seed: of random signs.
        part_bytes: least size of the parts in which a long w is gathered during the forward pass.

    Attributes:
        samples: of all ranks.
        weight_decay: coefficient of |w|^2 / 2.
        decay: the same of this rank's slice.
        size: n; slices differ by about a row of a weight matrix at most.
        gather: all ranks' slices (n,) as one new vector (N,). *Collective*.
        model: the module, at the ranks' w.

    Raises:
        UsageError: on all ranks, when a parameter of the model has no dimension.
    """

    held = "keeps a slice of w on every rank, which may cut a layer"
    remedy = "parallel.state = 'replicated' (in Python the DataParallelObjective itself)"

    def __init__(self, whole: DataParallelObjective, seed: int = 0, part_bytes: int = PART_BYTES) -> None:
        self.whole, self.comm, self._seed = whole, whole.comm, seed
        self.samples, self.weight_decay = whole.samples, whole.weight_decay
        parameters = whole.shard.parameters
        with whole.comm.together("cutting the variables"):
            _check_shapes(parameters.names, parameters.shapes)
            self._parts = row_slices(parameters.shapes, whole.comm.size)
        self._own = self._parts[whole.comm.rank]
        self.size, self.decay = self._own.count, whole.decay.part(lambda vector: vector[self._own.slice].clone())
        self._gathering = Gathering(whole.shard, whole.comm, self._parts, part_bytes)
        self.gather = self._gathering.whole
        self.model = ShardedModel(whole.model, self._own, self.gather)

    @property
    def layout(self) -> dict[str, Any]:
        """How samples and variables are spread over the ranks, for the record."""
        return self.whole.layout | {"state": "sharded", "slice_sizes": [part.count for part in self._parts]}

    @property
    def parameters(self) -> int:
        """Variables of the model: N."""
        return self.whole.size

    @property
    def classification(self) -> bool:
        """Whether the targets are labels."""
        return self.whole.classification

    @property
    def full_batch(self) -> Batch:
        """All samples of all ranks."""
        return self.whole.full_batch

    @property
    def blocks(self) -> Sequence[int]:
        """Every rank holds variables of its own."""
        return range(self.comm.size)

    @property
    def deterministic(self) -> bool:
        """Whether two evaluations of one point on the same samples agree whatever the batch's key: nothing is drawn."""
        return self.whole.deterministic

    @property
    def work(self) -> Work:
        """Of all ranks."""
        return self.whole.work

    @work.setter
    def work(self, work: Work) -> None:
        self.whole.work = work

    @property
    def flag(self) -> float:
        """What this rank asks for."""
        return self.whole.flag

    @flag.setter
    def flag(self, flag: float) -> None:
        self.whole.flag = flag

    @property
    def flags_seen(self) -> float:
        """The sum of what all asked."""
        return self.whole.flags_seen

    @flags_seen.setter
    def flags_seen(self, flags: float) -> None:
        self.whole.flags_seen = flags

    def initial_vector(self) -> Vector:
        """A fresh copy of this rank's slice (n,) of the model's parameters as they are now."""
        return self.model.initial_vector()

    def value(self, w: Vector, batch: Batch) -> float:
        """f(w) on the batch. *Collective*: w is gathered, and one reduction of float64 scalars."""
        with self._gathering.beside(w) as gathered:
            loss = self.whole.shard.loss_sum(gathered, batch)
        return self.whole.reduced_value(gathered, batch, loss)

    def value_and_gradient(self, w: Vector, batch: Batch) -> tuple[float, Vector]:
        """f(w) and this rank's slice (n,) of its gradient, a new vector. *Collective*.

        w is gathered; the gradient's sum is scattered, and the loss with it: every rank's part ends with the loss in
        digits whose sum is exact, and so the same on all ranks in whatever order they are added (``exact_sum``).
        """
        whole, scale = self.whole, 1.0 / batch.total
        with self._gathering.beside(w) as gathered:
            gradient = torch.empty_like(gathered)
            loss = whole.shard.gradient_sum(gathered, batch, scale, gradient) * scale
        digits = exact_sum.split_all((loss + self.decay.value(w), whole.flag))
        tail = torch.tensor(digits, dtype=w.dtype, device=w.device)
        buffer = torch.cat([part for own in self._parts for part in (gradient[own.slice], tail)])
        mine = self.comm.reduce_scatter(buffer, [own.count + len(tail) for own in self._parts], label="gradient")
        value, flags = exact_sum.join_all(mine[self.size :].tolist())
        whole.flags_seen += flags
        whole.work.gradients += batch.total / whole.samples
        return value, self.decay.add_gradient(mine[: self.size], w)

    def scatter(self, vector: Vector) -> Vector:
        """This rank's slice (n,) of the sum over the ranks of a vector (N,). *Collective*."""
        own: Vector = self.comm.reduce_scatter(vector, [own.count for own in self._parts], label="product")
        return own

    def shards(self) -> tuple[int, int]:
        """Position of this rank's first sample in the whole set, and how many it holds. *Collective*."""
        return self.whole.shards()

    def evaluate(self, w: Vector, test: Samples | None) -> tuple[Sums, Sums]:
        """Figures at w over the training set and over the test set, zeros without one. *Collective*."""
        gathered = self.gather(w)
        self.model.hold(w, gathered)
        return self.whole.evaluate(gathered, test)

    def estimate_statistics(self, w: Vector) -> None:
        """Let running statistics of normalisations be those of this rank's samples at w. *Collective*, if any."""
        if self.whole.shard.stochastic.runs:
            gathered = self.gather(w)
            self.model.hold(w, gathered)
            self.whole.estimate_statistics(gathered)

    def moments(self, targets: torch.Tensor) -> tuple[float, float]:
        """Number of a set's samples, and the sum of squared distances of targets from their mean. *Collective*."""
        return self.whole.moments(targets)

    def subset(self, batch: Batch, size: int, number: int) -> Batch:
        """The ``number``-th subset of about ``size`` samples of the batch. *Collective*, one number a rank."""
        return self.whole.subset(batch, size, number)

    def linearize(self, w: Vector, batch: Batch) -> ShardedLinearization:
        """The model linearised at w on the batch. *Collective*: w is gathered."""
        return ShardedLinearization(self, self.gather(w), batch)

    def signs(self, number: int) -> Vector:
        """This rank's slice (n,) of the ``number``-th vector of random signs."""
        like = torch.empty(0, dtype=self.model.dtype, device=self.model.device)
        return signs(self._seed, number, torch.arange(self._own.start, self._own.stop), like)


class ShardedLinearization(ImplicitLinearization):
    """J, J^T and Gauss-Newton products for slices of vectors: what goes in is gathered, what comes out is scattered.

    So ``jvp`` is *collective* too.

    Args:
        sharded: the objective.
        w: the point, gathered (N,).
        batch: the samples.
    """

    def __init__(self, sharded: ShardedStateObjective, w: Vector, batch: Batch) -> None:
        super().__init__(sharded.whole, w, batch)
        self._sharded, self._decay = sharded, sharded.decay

    def curvatures(self, directions: torch.Tensor) -> torch.Tensor:
        """D G D^T for this rank's columns D (k, n) of directions: (k, k), float64, on the CPU. *Collective*."""
        return super().curvatures(torch.stack([self._whole(direction) for direction in directions]))

    def _whole(self, v: Vector) -> Vector:
        return self._sharded.gather(v)

    def _reduced(self, vector: Vector) -> Vector:
        return self._sharded.scatter(vector)


def _check_shapes(names: Sequence[str], shapes: Sequence[torch.Size]) -> None:
    """Refuse parameters without a dimension, which no block of a saved array can stand for.

    Raises:
        UsageError: there is one.
    """
    for name, shape in zip(names, shapes, strict=True):
        if not shape:
            raise UsageError(
                f"the parameter {name} of the model is one number without a dimension, which cannot be saved where w "
                "is sharded (parallel.state = 'sharded'). Give it the shape (1,), or use parallel.state = 'replicated'."
            )
