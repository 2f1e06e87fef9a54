"""Methods that need the model's curvature as optimisers of torch: ``step`` takes samples, on all ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from hpcopt.checks import is_whole
from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.objective.losses import Loss
from hpcopt.objective.protocol import Batch, Vector
from hpcopt.optim.checks import check_alike, check_constants
from hpcopt.optim.model_objective import ModelObjective, modes_kept
from hpcopt.optim.one_vector import OneVectorOptimizer
from hpcopt.solvers.registry import make_solver
from hpcopt.solvers.solver import Solver, StepReport


class ModelOptimizer(OneVectorOptimizer):
    """What the methods share that take a model, its loss and samples instead of a closure. *Collective*.

    Subclasses name their method; the arguments are as they document them.
    """

    METHOD: ClassVar[str]
    """As in a job file."""

    def __init__(
        self,
        model: torch.nn.Module,
        loss_fn: str | Loss | Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        *,
        comm: Any = None,
        preset: str = "default",
        weight_decay: float = 0.0,
        full_batch: bool = False,
        micro_batch: int | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.comm = comm if isinstance(comm, Communicator) else Communicator(comm)
        self.report: StepReport | None = None
        self._complete = False
        with self.comm.together("setting up the optimiser"):
            self._check_model(model)
            super().__init__(model.parameters(), {})
            self._complete = True
            check_constants(self._name, weight_decay, full_batch)
            if micro_batch is not None and not is_whole(micro_batch, 1):
                raise UsageError(
                    f"{self._name}: micro_batch = {micro_batch!r} must be a whole number of at least 1, or None"
                )
            self._solver = self._make({**options, "preset": preset})
        sizes = [tuple(p.shape) for p in model.parameters() if p.requires_grad]
        dtypes = sorted({str(p.dtype) for p in model.parameters()})
        same = {"shapes": sizes, "precisions": dtypes, "options": self._solver, "weight_decay": weight_decay}
        check_alike(self.comm, {**same, "full_batch": full_batch, "micro_batch": micro_batch, "seed": seed})
        self._full_batch, self._steps, self._samples, self._changed = full_batch, 0, -1, False
        with torch.no_grad():
            self._objective = ModelObjective(model, loss_fn, self.comm, weight_decay, micro_batch, seed)
        self._state = self._solver.init(self._objective)

    @torch.no_grad()
    def step(self, inputs: torch.Tensor, targets: torch.Tensor) -> float:  # type: ignore[override]
        """One iteration on a batch. *Collective*: a gradient, curvatures, and a value or two.

        Dropout draws the same masks throughout the step, seeded by the seed, the step and the rank; torch's own random
        numbers are not touched. Running statistics of batch normalisation move once a step. NaN or infinity on any rank
        is a rejected step on all. An exception of the model on any rank is raised on all ranks; the parameters are then
        those of the last step.

        Args:
            inputs: this rank's samples of the batch, (samples, ...); none is allowed where other ranks have some.
            targets: their labels (samples,) or values (samples, C).

        Returns:
            The mean loss over all ranks' samples at the start of the step, without weight decay; NaN if it was not
            finite there. No ``grad`` of the parameters is touched.

        Raises:
            UsageError: on all ranks; the samples do not fit, or the ranks are not at the same step.
        """
        batch = self._begin(inputs, targets)
        objective, model = self._objective, self._objective.shard.module
        decay = objective.decay.value(self._parameters)
        self._changed = True  # what is known is not to be relied on if the step does not end
        try:
            with modes_kept(model):
                self._state, self.report = self._solver.step(objective, self._state, batch)
            if not self.report.finite:
                objective.check_failures()
        finally:
            objective.shard.parameters.bind(self._parameters)
        self._steps, self._changed = self._steps + 1, False
        return self.report.loss - decay

    @property
    def _draws(self) -> bool:
        return self._objective.shard.stochastic.draws

    @_draws.setter
    def _draws(self, draws: bool) -> None:
        self._objective.shard.stochastic.draws = draws

    def _write(self, w: Vector) -> None:
        self._objective.shard.parameters.bind(w)

    def _take_over(self, is_own: bool) -> None:
        if not is_own:
            self._samples = -1

    def _begin(self, inputs: torch.Tensor, targets: torch.Tensor) -> Batch:
        """Check the samples, see what changed since the last step, and agree on it. *Collective*, five scalars."""
        objective = self._objective
        with self.comm.together("checking the samples of the step"):
            _check_samples(inputs, targets)
            objective.begin(inputs, targets)
        count = len(objective.shard.inputs)
        now = objective.shard.parameters.copy()
        changed = self._changed or not torch.equal(now, self._parameters)
        changed |= self._full_batch and count != self._samples
        numbers = (count, changed, self._draws, self._steps, self._steps**2)
        total, changes, draws, steps, squares = map(int, self.comm.reduce_scalars(numbers, label="batch"))
        self._check_ranks(total, steps, squares)
        self._samples, objective.samples, objective.flags_seen = count, total, 0.0
        self._draws = bool(draws)
        if changes:
            self._parameters.copy_(self.comm.bcast(now, label="parameters"))
            self._forget()
        indices = None if self._full_batch else torch.arange(count, device=now.device)
        return Batch(indices, count, total, (0, self._steps))

    def _make(self, options: Mapping[str, Any]) -> Solver:
        """The method with the options given."""
        return make_solver(self.METHOD, options)

    def _forget(self) -> None:
        """The parameters are others than the last step left: of what it found nothing holds that is of a point."""
        if "known" in self._state:
            self._state["known"] = False

    def _check_model(self, model: object) -> None:
        if not isinstance(model, torch.nn.Module):
            raise UsageError(
                f"{self._name} was given {type(model).__name__}; it needs the model itself, a torch.nn.Module, since "
                f"it differentiates through its outputs: hpcopt.optim.{self._name}(model, loss_fn)"
            )
        if not any(p.requires_grad for p in model.parameters()):
            raise UsageError(
                f"{self._name} was given a model without trainable parameters; there must be something to train"
            )


def _check_samples(inputs: object, targets: object) -> None:
    for name, given in (("inputs", inputs), ("targets", targets)):
        if not isinstance(given, torch.Tensor) or given.ndim == 0:
            raise UsageError(
                f"step needs the inputs and the targets of this rank's samples, two tensors with one row a sample; "
                f"{name} was {type(given).__name__}. (A closure is what hpcopt.optim.APTS takes.)"
            )
