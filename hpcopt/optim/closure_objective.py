"""f(w) = sum over ranks of w_d f_d(w), where f_d is what a closure on rank d computes on its samples of the batch.

Shapes: n parameters, R ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.objective import reductions
from hpcopt.objective.curvature.signs import signs
from hpcopt.objective.protocol import Batch, Linearization, Vector, Work
from hpcopt.objective.reductions import Packed
from hpcopt.objective.vectors import WholeVectors
from hpcopt.objective.weight_decay import WeightDecay
from hpcopt.optim.closure import ClosureEvaluation


class LocalClosure:
    """f_d(w): what the closure computes on this rank, plus weight decay. Never communicates.

    ``work`` counts this rank's share of evaluations of the batch, so that the sum over ranks is the work of all;
    ``decay`` is the weight decay's part of f and of every f_d.
    """

    def __init__(self, evaluation: ClosureEvaluation, weight_decay: float) -> None:
        self.evaluation, self.decay = evaluation, WeightDecay(weight_decay)
        self.work = Work()

    def take_work(self) -> Work:
        """The work since the last call; the count starts again from 0."""
        work, self.work = self.work, Work()
        return work

    def begin(self, w: Vector) -> None:
        """Nothing is kept of w: all variables may change."""

    def take(self, vector: Vector) -> Vector:
        """``vector`` itself: all variables are this rank's."""
        return vector

    def put(self, own: Vector) -> Vector:
        """``own`` itself."""
        return own

    def goes_on(self, done: int) -> bool:
        """Whether another iteration makes sense: not after the closure failed."""
        return self.evaluation.failure is None

    def end(self) -> None:
        """Nothing to close."""

    def plain_value(self, w: Vector, batch: Batch) -> float:
        """The closure's loss, without weight decay; 0 on a rank without samples, where the closure is not called."""
        return self.evaluation.value(w) if batch.count else 0.0

    def plain_gradient(self, w: Vector, batch: Batch, out: Vector) -> float:
        """As ``plain_value``; the gradient is written into ``out`` (n,)."""
        if batch.count:
            return self.evaluation.value_and_gradient(w, out)
        out.zero_()
        return 0.0

    def value_and_gradient(self, x: Vector, batch: Batch) -> tuple[float, Vector]:
        """f_d and its gradient (n,), a new vector; NaN once the closure has failed in this step."""
        self.work.gradients += batch.count / batch.total
        gradient = torch.empty_like(x)
        loss = self.plain_gradient(x, batch, gradient)
        return loss + self.decay.value(x), self.decay.add_gradient(gradient, x)


class ClosureObjective(WholeVectors):
    """The objective of a step with a closure: replicated w, one closure a rank. *Collective* in its evaluations.

    Args:
        evaluation: of this rank's closure.
        comm: the ranks.
        weight_decay: coefficient of |w|^2 / 2.

    Attributes:
        deterministic: whether equal points have equal values in different steps; the owner sets it on all ranks alike.
    """

    def __init__(self, evaluation: ClosureEvaluation, comm: Communicator, weight_decay: float) -> None:
        self.comm, self.size = comm, evaluation.tensors.size
        self.local = LocalClosure(evaluation, weight_decay)
        self.work = Work()
        self.deterministic = False

    @property
    def blocks(self) -> Sequence[int]:
        """All ranks may change all variables."""
        return [0] * self.comm.size

    def initial_vector(self) -> Vector:
        """A fresh copy of the parameters as they are now."""
        return self.local.evaluation.tensors.read()

    def parameter_tensors(self) -> list[tuple[slice, torch.Size]]:
        """Where in w each parameter tensor lies, and its shape."""
        tensors = self.local.evaluation.tensors
        return list(zip(tensors.slices(), tensors.shapes, strict=True))

    def share(self, batch: Batch) -> float:
        """w_d: the part of the batch's samples that this rank holds."""
        return batch.count / batch.total

    def value(self, w: Vector, batch: Batch) -> float:
        """f(w) on the batch. *Collective*, one reduction of two scalars.

        Raises:
            RuntimeError: on all ranks, when a closure raised on some; the same error on all, when all raised it.
        """
        self.work.values += 1
        loss = self.share(batch) * self.local.plain_value(w, batch) + self._own_decay(w)
        loss, failed = self.comm.reduce_scalars([loss, self._failed], label="value")
        self._check(failed)
        return loss

    def value_and_gradient(self, w: Vector, batch: Batch) -> tuple[float, Vector]:
        """f(w) and its gradient, a new vector. *Collective*, one reduction; raises as ``value``."""
        packed = Packed.empty(self.size, 2, w)
        loss = self.local.plain_gradient(w, batch, packed.vector)
        return self._sum(packed, loss, w, batch)

    def value_and_gradients(self, w: Vector, batch: Batch) -> tuple[float, Vector, float, Vector]:
        """As ``value_and_gradient``, and f_d(w) of this rank with its gradient (n,) from the same evaluation."""
        packed = Packed.empty(self.size, 2, w)
        loss = self.local.plain_gradient(w, batch, packed.vector)
        own = packed.vector.clone()
        self.local.decay.add_gradient(own, w)
        return *self._sum(packed, loss, w, batch), loss + self.local.decay.value(w), own

    def combine(
        self, vector: Vector, scalars: Sequence[float], own: Sequence[float] = ()
    ) -> tuple[Vector, list[float], torch.Tensor]:
        """Sums over the ranks of a vector (n,) and of scalars, with the local work. *Collective*, as ``value``."""
        work = self.local.take_work()
        numbers = (*scalars, work.values, work.gradients, self._failed)
        vector, sums, told = reductions.combine(self.comm, vector, numbers, own)
        self._check(sums[-1])
        self.work.values += sums[-3]
        self.work.gradients += sums[-2]
        return vector, sums[:-3], told

    def release(self, gradient: Vector) -> None:
        """Nothing is lent."""

    def subset(self, batch: Batch, size: int, number: int) -> Batch:
        """Not possible, as ``linearize``."""
        raise _no_model()

    def signs(self, number: int) -> Vector:
        """The ``number``-th vector (n,) of random signs, the same on all ranks."""
        return signs(0, number, torch.arange(self.size), self.initial_vector())

    def linearize(self, w: Vector, batch: Batch) -> Linearization:
        """Not possible: a closure gives gradients only.

        Raises:
            UsageError: always, on all ranks.
        """
        raise _no_model()

    @property
    def kronecker(self) -> NoReturn:
        """Not possible, as ``linearize``."""
        raise _no_model()

    def _sum(self, packed: Packed, loss: float, w: Vector, batch: Batch) -> tuple[float, Vector]:
        """Weight this rank's loss and gradient, and sum them over the ranks."""
        gradient, share = packed.vector, self.share(batch)
        gradient.mul_(share)
        loss, failed = packed.sum(self.comm, (share * loss + self._own_decay(w), self._failed), "gradient")
        self._check(failed)
        self.work.gradients += 1
        return loss, self.local.decay.add_gradient(gradient, w)

    def _own_decay(self, w: Vector) -> float:
        """Weight decay on rank 0, 0 elsewhere: added before the reduction, it is the same number on all ranks."""
        return self.local.decay.value(w) if self.comm.rank == 0 else 0.0

    @property
    def _failed(self) -> float:
        return float(self.local.evaluation.failure is not None)

    def _check(self, failed: float) -> None:
        """Raise on all ranks when the closure of ``failed`` of them raised. *Collective*."""
        if failed:
            with self.comm.together("evaluating the closure"):
                if self.local.evaluation.failure is not None:
                    raise self.local.evaluation.failure


def _no_model() -> UsageError:
    return UsageError(
        "a closure has no Jacobian to multiply with; use hpcopt.DataParallelObjective for methods that need one",
        collective=True,
    )
