"""The mean loss of a model on the samples of one step, which change from step to step. *Collective*.

The model belongs to the user: its tensors keep their memory, its modes stay as they are, and an exception in it on one
rank is raised on all. Shapes: n parameters, C outputs, k directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.fit import check_fit, on
from hpcopt.objective.linearization import ImplicitLinearization
from hpcopt.objective.losses import Loss, make_loss
from hpcopt.objective.parameters import FlatParameters
from hpcopt.objective.protocol import Batch, Vector
from hpcopt.objective.shard import Shard
from hpcopt.objective.stochastic import StochasticState
from hpcopt.objective.weight_decay import WeightDecay
from hpcopt.optim.tensors import ParameterTensors

T = TypeVar("T")
NO_BUCKETS = 2**62
"""No gradient is so long that it is reduced in pieces: that would leave hooks in the user's tensors."""


class CopiedParameters(FlatParameters):
    """A model's parameters, which are written to instead of being replaced by views, and are to stay the same ones.

    Args:
        model: any torch module; it is left in its precision and on its device.

    Raises:
        UsageError: none is trainable, or they are not all of float32 or all of float64 on one device.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._written = ParameterTensors(list(model.parameters()))
        self.names, self.tensors = [name for name, _ in named], [p for _, p in named]
        self.shapes, self.counts, self.size = self._written.shapes, self._written.counts, self._written.size
        self.dtype, self.device = self._written.dtype, self._written.device
        # All are kept, so that no new one gets the number in memory of one that is gone.
        self._all, self._form = list(model.parameters()), _form(model)

    def check_model(self, model: torch.nn.Module) -> None:
        """Refuse a model that has other parameters by now: new ones are in no vector, and differ from rank to rank.

        Raises:
            UsageError: names some that are new or gone, frozen or free since, or of another precision or place.
        """
        now = _form(model)
        if now.keys() == self._form.keys():
            return
        names = sorted({(now | self._form)[each] for each in now.keys() ^ self._form.keys()})
        raise UsageError(
            f"the model has other parameters than those that this optimiser was made for: layers were added, replaced, "
            f"removed, frozen or converted since (see {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}). Make "
            "a new optimiser for the model as it is now"
        )

    def bind(self, vector: Vector) -> None:
        """Copy the vector (n,) into the tensors."""
        self._written.write(vector)

    def copy(self) -> Vector:
        """A fresh copy of the parameters that the module holds now."""
        return self._written.read()


def _form(model: torch.nn.Module) -> dict[tuple[object, ...], str]:
    """What is to stay as it is of every parameter, and its name."""
    return {(id(p), p.requires_grad, p.dtype, p.device): name for name, p in model.named_parameters()}


class GuardedShard(Shard):
    """Samples whose evaluation may fail on this rank: the exception is kept, and the result is NaN.

    Attributes:
        failure: the first exception of the step. After it nothing is evaluated.
    """

    failure: Exception | None = None

    def guarded(self, evaluate: Callable[[], T], otherwise: Callable[[], T]) -> T:
        """``evaluate()``, or ``otherwise()`` where that fails or something failed before."""
        if self.failure is None:
            try:
                with torch.enable_grad():
                    return evaluate()
            except Exception as error:
                self.failure = error
        return otherwise()

    def loss_sum(self, w: Vector, batch: Batch) -> float:
        """As of ``Shard``, or NaN."""
        return self.guarded(lambda: super(GuardedShard, self).loss_sum(w, batch), lambda: math.nan)

    def gradient_sum(
        self, w: Vector, batch: Batch, scale: float, out: Vector, tensors: Sequence[torch.Tensor] | None = None
    ) -> float:
        """As of ``Shard``, or NaN and a gradient of zeros."""

        def nothing() -> float:
            out.zero_()
            return math.nan

        return self.guarded(lambda: super(GuardedShard, self).gradient_sum(w, batch, scale, out, tensors), nothing)


class GuardedLinearization(ImplicitLinearization):
    """Products that are NaN on all ranks once the model has failed on one."""

    def __init__(self, objective: ModelObjective, w: Vector, batch: Batch) -> None:
        self._guard = objective.guard
        super().__init__(objective, w, batch)

    def _local_product(self, v: Vector) -> Vector:
        make = super()._local_product
        return self._guard.guarded(lambda: make(v), lambda: torch.full_like(v, torch.nan))

    def _local_curvatures(self, directions: torch.Tensor) -> torch.Tensor:
        make, shape = super()._local_curvatures, (len(directions), len(directions))
        return self._guard.guarded(lambda: make(directions), lambda: torch.full(shape, torch.nan, dtype=torch.float64))


class ModelObjective(DataParallelObjective):
    """An objective without samples, until a step brings them.

    Args:
        model: any torch module; all ranks get rank 0's parameters.
        loss: as of ``DataParallelObjective``.
        comm: the ranks.
        weight_decay: coefficient of |w|^2 / 2.
        micro_batch: most samples in one forward pass on a rank.
        seed: of dropout masks and of subsets.

    Raises:
        UsageError: the parameters or the loss cannot be used.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss: str | Loss | Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        comm: Communicator,
        weight_decay: float,
        micro_batch: int | None,
        seed: int,
    ) -> None:
        with comm.together("setting up the optimiser"):
            self._copied, stochastic = CopiedParameters(model), StochasticState(model, seed, comm.rank)
            nothing = torch.empty(0, 1)
            self.guard = GuardedShard(model, make_loss(loss), nothing, nothing, self._copied, stochastic, micro_batch)
        stochastic.draws, self.samples, self.outputs = False, 0, 0
        self._checked: tuple[object, ...] = ()
        self._example = nothing
        self._set_up(self.guard, comm, WeightDecay(weight_decay), NO_BUCKETS, seed)

    def begin(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """This rank's samples of a step; local, but call it within ``comm.together``.

        Raises:
            UsageError: they do not fit the model or the loss, or the model has other parameters by now.
        """
        shard, parameters = self.guard, self.guard.parameters
        shard.failure = None
        self._copied.check_model(shard.module)
        shard.inputs = on(inputs, parameters.dtype, parameters.device)
        shard.targets = on(targets, parameters.dtype, parameters.device)
        form = (shard.inputs.shape[1:], shard.inputs.dtype, shard.targets.shape[1:], shard.targets.dtype)
        if form == self._checked and len(shard.inputs) == len(shard.targets):
            shard.loss.check(self._example, shard.targets)
        elif len(shard.inputs) or len(shard.targets):
            with modes_kept(shard.module), torch.no_grad():
                self.outputs, draws = check_fit(shard)
                self._example = shard.module.eval()(shard.inputs[:1])
            shard.stochastic.draws |= draws
            self._checked = form

    def value(self, w: Vector, batch: Batch) -> float:
        """As of ``DataParallelObjective``.

        Raises:
            RuntimeError: on all ranks, when the model failed on some; the same error on all, when it failed on all.
        """
        value = super().value(w, batch)
        self._tell(self.flags_seen)
        return value

    def value_and_gradient(self, w: Vector, batch: Batch) -> tuple[float, Vector]:
        """As of ``DataParallelObjective``; raises as ``value``."""
        value, gradient = super().value_and_gradient(w, batch)
        self._tell(self.flags_seen)
        return value, gradient

    def linearize(self, w: Vector, batch: Batch) -> GuardedLinearization:
        """The model linearised at w; its products are NaN where it fails."""
        return GuardedLinearization(self, w, batch)

    def check_failures(self) -> None:
        """Raise as ``value`` if the model failed anywhere in this step. *Collective*, one scalar."""
        self._tell(self.comm.reduce_scalars([self.flag], label="value")[0])

    @property
    def flag(self) -> float:
        """1 when the model failed on this rank; it travels with every evaluation."""
        return float(self.guard.failure is not None)

    @flag.setter
    def flag(self, _: float) -> None:
        """Only the model's failure counts."""

    def _tell(self, failed: float) -> None:
        if failed:
            self.flags_seen = 0.0
            with self.comm.together("evaluating the model"):
                if self.guard.failure is not None:
                    raise self.guard.failure


@contextmanager
def modes_kept(model: torch.nn.Module) -> Iterator[None]:
    """Training or evaluation of every module is as before afterwards: a user may have frozen some of them."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
