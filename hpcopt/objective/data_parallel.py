"""f(w) with w replicated on all ranks and the samples sharded: one reduction an evaluation.

Shapes: n parameters, N training samples of all ranks, B samples in a batch, C outputs, R ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.objective import reductions
from hpcopt.objective.augmentation import Augment
from hpcopt.objective.buckets import BucketedGradient
from hpcopt.objective.curvature.kronecker import KroneckerCurvature
from hpcopt.objective.curvature.signs import signs
from hpcopt.objective.figures import chunk_of, squares_from_mean, sums
from hpcopt.objective.fit import check_fit, check_options, on
from hpcopt.objective.linearization import FORWARD_MODES, ImplicitLinearization
from hpcopt.objective.local import LocalObjective
from hpcopt.objective.losses import Loss, make_loss
from hpcopt.objective.model_state import ReplicatedModel
from hpcopt.objective.parameters import FlatParameters
from hpcopt.objective.problem import Samples, Sums
from hpcopt.objective.protocol import Batch, Vector, Work
from hpcopt.objective.reductions import Packed
from hpcopt.objective.separable.model import SeparableModel
from hpcopt.objective.shard import Part, Shard
from hpcopt.objective.stochastic import StochasticState
from hpcopt.objective.subsets import Subsets
from hpcopt.objective.vectors import WholeVectors
from hpcopt.objective.weight_decay import WeightDecay, without_normalisations

BUCKET_BYTES = 32 * 2**20
"""Gradients longer than two of these are reduced in pieces that overlap with the backward pass."""


class DataParallelObjective(WholeVectors):
    """The mean loss over a batch whose samples are spread over the ranks, plus weight decay. *Collective*.

    Args:
        model: any torch module; of the same form on all ranks, which get rank 0's parameters and buffers.
        loss: "cross_entropy", "squared", or a torch callable that returns the mean over samples.
        inputs: this rank's samples, (samples, ...).
        targets: their labels (samples,) or values (samples, C).
        comm: the ranks that share the samples.
        weight_decay: coefficient of |w|^2 / 2.
        decay_norms: whether that is also of scale and shift of torch's normalisations.
        micro_batch: most samples in one forward pass on a rank; larger batches are accumulated.
        bucket_bytes: size of the pieces in which a long gradient is reduced during the backward pass.
        seed: of dropout masks.
        augment: changes the samples of every batch in each epoch, such as ``CropAndFlip``; evaluations of whole sets
            see the samples as they are.

    Raises:
        UsageError: shapes of inputs, targets and outputs do not fit together, no rank has a sample, the ranks have
            different models, or an option breaks its rule.

    Attributes:
        holds_layers: every rank holds the layers whole, so that ``kronecker`` is offered.
    """

    holds_layers = True

    def __init__(
        self,
        model: torch.nn.Module,
        loss: str | Loss | Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        inputs: torch.Tensor | np.ndarray,
        targets: torch.Tensor | np.ndarray,
        comm: Communicator,
        *,
        weight_decay: float = 0.0,
        decay_norms: bool = True,
        micro_batch: int | None = None,
        bucket_bytes: int = BUCKET_BYTES,
        seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        first = next(model.parameters(), None)
        dtype, device = (torch.float32, torch.device("cpu")) if first is None else (first.dtype, first.device)
        parameters, self.comm = FlatParameters(model, dtype, device), comm
        data = on(inputs, dtype, device), on(targets, dtype, device)
        stochastic = StochasticState(model, seed, comm.rank)
        shard = Shard(model, make_loss(loss), *data, parameters, stochastic, micro_batch, [self._own_part], augment)
        with comm.together("checking the data against the model"):
            check_options(weight_decay, micro_batch=micro_batch)
            outputs, draws = check_fit(shard)
        self.samples = int(comm.reduce_scalars([float(len(shard.evaluated()[0]))], label="samples")[0])
        most = comm.reduce_scalars([outputs, draws], op="max", label="samples")
        self.outputs, stochastic.draws = int(most[0]), bool(most[1])
        if self.samples == 0:
            raise UsageError("no rank has a training sample; the mean loss of nothing is not defined", collective=True)
        decay = WeightDecay(weight_decay, None if decay_norms else without_normalisations(model, parameters))
        self._set_up(shard, comm, decay, bucket_bytes, seed)

    def _set_up(self, shard: Shard, comm: Communicator, decay: WeightDecay, bucket_bytes: int, seed: int) -> None:
        """All that does not depend on the samples; all ranks get rank 0's model. *Collective*."""
        parameters = shard.parameters
        self.comm, self.decay, self.size, self.shard = comm, decay, parameters.size, shard
        self.weight_decay = decay.coefficient
        self.work, self.local = Work(), LocalObjective(shard, decay, self.samples)
        self.model = ReplicatedModel(shard.module, parameters, comm)
        self.flag, self.flags_seen = 0.0, 0.0
        self.forward_mode, self.sample_bytes = FORWARD_MODES[0], dict[torch.Size, float]()
        self._lent: Packed | None = None
        self._spare: Packed | None = None
        self._buckets = BucketedGradient(shard, comm, bucket_bytes)
        self._seed, self._subsets = seed, Subsets(seed, parameters.device)
        self.model.broadcast()

    @property
    def layout(self) -> dict[str, Any]:
        """How samples and variables are spread over the ranks, for the record."""
        return {"layout": "data"}

    @property
    def full_batch(self) -> Batch:
        """All samples of all ranks."""
        return Batch(None, len(self.shard.inputs), self.samples)

    @property
    def blocks(self) -> Sequence[int]:
        """All ranks may change all variables."""
        return [0] * self.comm.size

    @property
    def deterministic(self) -> bool:
        """Whether two evaluations of one point on the same samples agree whatever the batch's key: nothing is drawn."""
        return self.shard.deterministic

    def initial_vector(self) -> Vector:
        """A fresh copy of the model's parameters as they are now."""
        return self.shard.parameters.copy()

    def parameter_tensors(self) -> list[tuple[slice, torch.Size]]:
        """Where in w each parameter tensor of the model lies, and its shape."""
        return list(zip(self.shard.parameters.slices(), self.shard.parameters.shapes, strict=True))

    def value(self, w: Vector, batch: Batch) -> float:
        """f(w) on the batch. *Collective*, one reduction of float64 scalars."""
        return self.reduced_value(w, batch, self.shard.loss_sum(w, batch))

    def reduced_value(self, w: Vector, batch: Batch, loss: float) -> float:
        """As ``value``, from this rank's ``loss`` sum. *Collective*, one reduction of float64 scalars."""
        loss = loss / batch.total + self._own_decay(w)
        self.work.values += batch.total / self.samples
        reduced = self.comm.reduce_scalars([loss, self.flag], label="value")
        self.flags_seen += reduced[1]
        return reduced[0]

    def value_and_gradient(self, w: Vector, batch: Batch) -> tuple[float, Vector]:
        """f(w) and its gradient, a new vector the caller owns. *Collective*, one reduction of n + 32 numbers.

        The loss rides at the end of the gradient's buffer, exact to float64 (see ``exact_sum``).
        """
        packed, scale = self._new_buffer(w), 1.0 / batch.total
        if not self._buckets.wanted(batch):
            loss = self.shard.gradient_sum(w, batch, scale, packed.vector)
            return self._sum(packed, w, batch, loss * scale), packed.vector
        self._buckets.reduce(w, batch, scale, packed.buffer, lambda loss: packed.write(self._scalars(w, loss)))
        return self._reduced(packed, packed.read(), w, batch), packed.vector

    def reduced_gradient(self, w: Vector, batch: Batch, evaluate: Callable[[Vector], float]) -> tuple[float, Vector]:
        """As ``value_and_gradient``, of which this rank's part comes from ``evaluate``. *Collective*, one reduction.

        Args:
            w: where, (n,).
            batch: the samples.
            evaluate: writes this rank's part of the mean loss's gradient into the vector (n,) that it gets, and returns
                its loss sum.
        """
        packed = self._new_buffer(w)
        loss = evaluate(packed.vector) * (1.0 / batch.total)
        return self._sum(packed, w, batch, loss), packed.vector

    @cached_property
    def separable(self) -> SeparableModel:
        """The model as features and a linear last layer. *Collective* when first asked for.

        Raises:
            UsageError: on all ranks, when the last layer is not linear or the loss is another one than the squared.
        """
        return SeparableModel(self)

    def value_and_gradients(self, w: Vector, batch: Batch) -> tuple[float, Vector, float, Vector]:
        """f(w), its gradient, and this rank's f_d(w) with its gradient, from one evaluation. *Collective*.

        One reduction, after the backward pass: in buckets this rank's own sum would be gone before it is complete.
        """
        packed, scale = self._new_buffer(w), 1.0 / batch.total
        gradient = packed.vector
        loss = self.shard.gradient_sum(w, batch, scale, gradient)
        own = gradient * (batch.total / max(batch.count, 1))
        value = self._sum(packed, w, batch, loss * scale)
        loss = loss / max(batch.count, 1) + self.decay.value(w)
        return value, gradient, loss, self.decay.add_gradient(own, w)

    def share(self, batch: Batch) -> float:
        """w_d: the part of the batch's samples that this rank holds."""
        return batch.count / batch.total

    def combine(
        self, vector: Vector, scalars: Sequence[float], own: Sequence[float] = ()
    ) -> tuple[Vector, list[float], torch.Tensor]:
        """Sums over the ranks of ``vector`` (n,) and of float64 scalars, exact. *Collective*, one reduction.

        The local work of all ranks since the last call rides along and is counted. So does what each rank tells of its
        own, in a row that the others fill with zeros.
        """
        work = self.local.take_work()
        counted = (*scalars, work.values, work.gradients, self.flag)
        vector, sums, told = reductions.combine(self.comm, vector, counted, own)
        self.work.values += sums[-3]
        self.work.gradients += sums[-2]
        self.flags_seen += sums[-1]
        return vector, sums[:-3], told

    def release(self, gradient: Vector) -> None:
        """Take back the memory of the latest gradient. Fresh pages for each would cost as much as its reduction."""
        if self._lent is not None and gradient.data_ptr() == self._lent.buffer.data_ptr():
            self._spare, self._lent = self._lent, None

    def subset(self, batch: Batch, size: int, number: int) -> Batch:
        """The ``number``-th subset of about ``size`` samples of the batch. *Collective*, one number a rank."""
        return self._subsets.take(batch, size, number, self.samples_before(batch))

    def samples_before(self, batch: Batch) -> int:
        """How many of the batch's samples the ranks before this one hold. *Collective*, one number a rank."""
        return self._samples_before([count for (count,) in reductions.tell(self.comm, [batch.count], "subset")])

    def linearize(self, w: Vector, batch: Batch) -> ImplicitLinearization:
        """The model linearised at w on the batch, by forward and backward mode. *Collective* in its products."""
        return ImplicitLinearization(self, w, batch)

    @cached_property
    def kronecker(self) -> KroneckerCurvature:
        """The curvature in Kronecker factors. The first call is *collective*."""
        return KroneckerCurvature(self, self._seed)

    def signs(self, number: int) -> Vector:
        """The ``number``-th vector (n,) of random signs, the same on all ranks."""
        like = torch.empty(0, dtype=self.shard.parameters.dtype, device=self.shard.parameters.device)
        return signs(self._seed, number, torch.arange(self.size), like)

    def reduce(self, vector: Vector) -> Vector:
        """Sum of ``vector`` over the ranks, in place. *Collective*."""
        reduced: Vector = self.comm.allreduce(vector, label="product")
        return reduced

    def count_values(self, batch: Batch) -> None:
        """Count a forward pass on ``batch``."""
        self.work.values += batch.total / self.samples

    def count_products(self, batch: Batch, products: float = 1.0) -> None:
        """Count curvature products on ``batch``."""
        self.work.curvature_products += products * batch.total / self.samples

    @property
    def parameters(self) -> int:
        """Variables of the model: n."""
        return self.size

    @property
    def classification(self) -> bool:
        """Whether the targets are labels."""
        return not self.shard.targets.is_floating_point()

    def shards(self) -> tuple[int, int]:
        """Position of this rank's first sample in the whole set, and how many it holds. *Collective*."""
        given = self.comm.allgather_objects((len(self.shard.inputs), self.blocks[self.comm.rank]), label="samples")
        # Ranks that vary other blocks of the variables hold the samples of the one before them that varies block 0.
        counts = [count for count, column in given if column == 0]
        shard = sum(column == 0 for _, column in given[: self.comm.rank + 1]) - 1
        return sum(counts[:shard]), counts[shard]

    def evaluate(self, w: Vector, test: Samples | None) -> tuple[Sums, Sums]:
        """Figures at w over the training set and over the test set, zeros without one. *Collective*."""
        self.model.synchronize_buffers()
        self.model.bind(w)
        shard = self.shard
        shard.module.eval()
        try:
            both = [
                sums(shard.module, shard.loss, part, shard.micro_batch) for part in (shard.evaluated(), test) if part
            ]
        finally:
            shard.module.train()
        reduced = self.comm.reduce_scalars([figure for part in both for figure in part], label="evaluation")
        return Sums(*reduced[:3]), Sums(*reduced[3:])

    def estimate_statistics(self, w: Vector) -> None:
        """Let running statistics of normalisations be those of this rank's samples at w (n,). Local."""
        shard = self.shard
        samples, _ = shard.evaluated()
        if not shard.stochastic.runs or len(samples) < 2:  # one alone has no variance
            return
        shard.prepare(w)
        pieces = samples.tensor_split(-(-len(samples) // chunk_of(samples, shard.micro_batch)))
        shard.guarded(lambda: shard.stochastic.estimate(shard.module, pieces), lambda: None)

    def moments(self, targets: torch.Tensor) -> tuple[float, float]:
        """Number of a set's samples, and the sum of squared distances of targets from their mean. *Collective*."""
        count, own = squares_from_mean(targets, self.comm)
        return count, self.comm.reduce_scalars([own], label="evaluation")[0]

    @property
    def _own_part(self) -> Part:
        """What this rank evaluates of its samples in a batch for all ranks."""
        return Part(0, 1, self.comm.rank)

    def _samples_before(self, counts: Sequence[float]) -> int:
        """Samples of a batch that the ranks before this one hold, when every rank holds as many as ``counts`` says."""
        return int(sum(counts[: self.comm.rank]))

    def _own_decay(self, w: Vector) -> float:
        """Weight decay on rank 0, 0 elsewhere: added before the reduction, it is the same number on all ranks."""
        return self.decay.value(w) if self.weight_decay and self.comm.rank == 0 else 0.0

    def _sum(self, packed: Packed, w: Vector, batch: Batch, loss: float) -> float:
        """Sum this rank's part of a gradient over the ranks in place, and of the mean loss. *Collective*."""
        return self._reduced(packed, packed.sum(self.comm, self._scalars(w, loss), "gradient"), w, batch)

    def _reduced(self, packed: Packed, scalars: Sequence[float], w: Vector, batch: Batch) -> float:
        """The loss among reduced scalars; flags and work are counted, the gradient gets its weight decay."""
        value, flags = scalars
        self.flags_seen += flags
        self.work.gradients += batch.total / self.samples
        self.decay.add_gradient(packed.vector, w)
        return value

    def _new_buffer(self, w: Vector) -> Packed:
        """Room for a gradient and the scalars behind it."""
        packed, self._spare = self._spare, None
        self._lent = Packed.empty(self.size, 2, w) if packed is None else packed
        return self._lent

    def _scalars(self, w: Vector, loss: float) -> tuple[float, float]:
        """What rides behind a gradient: this rank's part of the loss, and what it asks for."""
        return loss + self._own_decay(w), self.flag
