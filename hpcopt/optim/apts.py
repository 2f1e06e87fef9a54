"""APTS as an optimiser of torch: ``step`` takes a closure, as ``torch.optim.LBFGS`` does, and works over all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch

from hpcopt.checks import is_whole
from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.objective.protocol import Batch, Vector
from hpcopt.optim.checks import check_alike, check_constants
from hpcopt.optim.closure import Closure, ClosureEvaluation
from hpcopt.optim.closure_objective import ClosureObjective
from hpcopt.optim.one_vector import AveragingOptimizer
from hpcopt.optim.tensors import ParameterTensors
from hpcopt.solvers import apts as solvers_apts
from hpcopt.solvers.averaging import empty_average
from hpcopt.solvers.registry import make_solver
from hpcopt.solvers.solver import StepReport


class APTS(AveragingOptimizer):
    """The additively preconditioned trust-region strategy, for a training loop of the user's own. *Collective*.

    Every rank has the same model and its own samples, and calls ``step`` equally often. There is no learning rate, and
    so nothing for a scheduler of learning rates to change. All parameters are one vector: one group, one precision, one
    device. Those with ``requires_grad=False`` are left alone.

    Args:
        params: ``model.parameters()``. Rank 0's values are copied to all ranks.
        comm: the ranks that share the samples: a communicator of mpi4py or of hpcopt; None for all of the job.
        preset: "default" or "paper".
        weight_decay: coefficient of |w|^2 / 2, added to the loss; it must not be in the closure as well.
        full_batch: the closure computes the same loss of the same samples in every step. What is known from the last
            step is then not evaluated again.
        options: any option of ``hpcopt.solvers.APTS``. All arguments are the same on all ranks.

    Attributes:
        report: the ``StepReport`` of the last step, None before the first: whether it was accepted, its ratio rho, the
            radius, every rank's local iterations, and on full batches a reason to stop.

    Raises:
        UsageError: on all ranks; the parameters or an option cannot be used.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        comm: Any = None,
        preset: str = "default",
        weight_decay: float = 0.0,
        full_batch: bool = False,
        **options: Any,
    ) -> None:
        self.comm = comm if isinstance(comm, Communicator) else Communicator(comm)
        self.report: StepReport | None = None
        self._complete = False
        with self.comm.together("setting up the optimiser"):
            super().__init__(_one_group(params), {})
            self._complete = True
            check_constants("APTS", weight_decay, full_batch)
            self._solver = make_solver("apts", {**options, "preset": preset})
            tensors = ParameterTensors(self.param_groups[0]["params"])
        same = {"parameters": tensors.size, "precision": str(tensors.dtype), "options": self._solver}
        check_alike(self.comm, {**same, "weight_decay": weight_decay, "full_batch": full_batch})
        self._full_batch, self._steps, self._samples = full_batch, 0, -1
        self._changed, self._own_unknown = False, False
        self._evaluation = ClosureEvaluation(tensors)
        self._objective = ClosureObjective(self._evaluation, self.comm, weight_decay)
        tensors.write(self.comm.bcast(tensors.read(), label="parameters"))
        self._state = self._solver.init(self._objective)

    @torch.no_grad()
    def step(self, closure: Closure, samples: int | None = None) -> float:  # type: ignore[override]
        """One iteration on the batch behind the closure. *Collective*: 3 + mu reductions of n numbers.

        With ``full_batch`` they are 2 + mu from the second step on. The closure is called several times, at different
        points, always with torch's random numbers as they were at the start of the step, so that dropout draws the same
        masks; after the step they have advanced as by one call. Other random numbers, such as NumPy's, must be drawn
        before the step. What a model keeps besides parameters, such as running statistics of batch normalisation, an
        optimiser cannot see: every call moves it.

        NaN or infinity on any rank is a rejected step on all. An exception in the closure of any rank is raised on all
        ranks, at the next reduction; the parameters are then where the last accepted trial left them.

        Args:
            closure: computes the mean loss over this rank's samples of the batch, calls ``backward`` and returns the
                loss. Gradients of earlier calls are gone whether or not it calls ``zero_grad``.
            samples: number of this rank's samples behind the closure, by which the ranks are weighted; the closure is
                not called where it is 0. None on all ranks for equal weights.

        Returns:
            The mean loss over all ranks' samples at the start of the step, without weight decay; NaN if it was not
            finite there. Every ``grad`` of the parameters is None after the step.

        Raises:
            UsageError: on all ranks; an argument cannot be used, or the ranks are not at the same step.
        """
        batch = self._begin(closure, samples)
        decay = self._objective.local.decay.value(self._parameters)
        self._evaluation.begin(closure)
        self._changed = True  # what is known is not to be relied on if the step does not end
        try:
            self._state, self.report = self._solver.step(self._objective, self._state, batch)
        finally:
            self._evaluation.end(self._parameters)
        self._steps, self._changed = self._steps + 1, False
        return self.report.loss - decay

    @property
    def _draws(self) -> bool:
        return self._evaluation.draws

    @_draws.setter
    def _draws(self, draws: bool) -> None:
        self._evaluation.draws = draws

    def _write(self, w: Vector) -> None:
        self._evaluation.tensors.write(w)

    def _take_over(self, is_own: bool) -> None:
        if not is_own:
            fresh = self._solver.init(self._objective)
            self._state |= {key: value for key, value in fresh.items() if key.startswith(solvers_apts.APTS.OWN_STATE)}
        self._own_unknown = not is_own

    def _begin(self, closure: Closure, samples: int | None) -> Batch:
        """Check the arguments, see what changed since the last step, and agree on it. *Collective*, eight scalars."""
        refusal = _refusal(closure, samples)
        count = 0 if refusal else 1 if samples is None else int(samples)
        now = self._evaluation.tensors.read()
        changed = self._changed or not torch.equal(now, self._parameters)
        # In the state of another rank stands the number of that rank's samples, which says nothing of this one's.
        changed |= self._full_batch and not self._own_unknown and count != self._samples
        flags = (samples is None, refusal is not None, changed, self._evaluation.draws, self._own_unknown)
        numbers = map(float, (count, *flags, self._steps, self._steps**2))
        sums = [int(s) for s in self.comm.reduce_scalars(list(numbers), label="batch")]
        if sums[2]:
            with self.comm.together("starting a step"):
                if refusal:
                    raise UsageError(refusal)
        self._check_ranks(sums[0], sums[6], sums[7])
        if sums[1] not in (0, self.comm.size):
            raise UsageError(
                f"samples was given on some ranks and not on {sums[1]} others; give it on all ranks or on none",
                collective=True,
            )
        self._samples = count
        self._evaluation.draws = bool(sums[4])
        self._objective.deterministic = not self._evaluation.draws
        if sums[5]:
            # One rank alone cannot evaluate: all do, and everything else that they know stays.
            self._state["known"], self._own_unknown = False, False
        if sums[3]:
            self._forget(now)
        indices = None if self._full_batch else torch.empty(0, dtype=torch.int64)
        return Batch(indices, count, sums[0], (0, self._steps))

    def _forget(self, now: Vector) -> None:
        """Start from rank 0's parameters, of which no value is known. *Collective*."""
        self._parameters.copy_(self.comm.bcast(now, label="parameters"))
        self._state |= {"known": False, "promised": 0.0}
        cast(Vector, self._state["window"]).fill_(-torch.inf)
        if "average" in self._state:
            self._state |= empty_average(self._parameters)


def _one_group(params: Iterable[Any]) -> list[Any]:
    if isinstance(params, torch.Tensor):
        raise UsageError("APTS was given a tensor; give it a list of tensors, such as model.parameters()")
    found = [params] if isinstance(params, Mapping) else list(params)
    if not found:
        raise UsageError("APTS was given no parameters; there must be something to train")
    if len(found) > 1 and isinstance(found[0], Mapping):
        raise UsageError(
            f"APTS was given {len(found)} groups of parameters; it treats all parameters as one vector. Give it one "
            "list, such as model.parameters()"
        )
    if found and isinstance(found[0], Mapping) and (more := sorted(set(found[0]) - {"params"})):
        raise UsageError(f"a group of parameters has no options of its own; give {', '.join(more)} to APTS itself")
    return found


def _refusal(closure: object, samples: object) -> str | None:
    if not callable(closure):
        return (
            "step needs a closure that computes the loss, calls backward and returns the loss; "
            f"it was given {closure!r}"
        )
    if samples is not None and not is_whole(samples, 0):
        return f"samples = {samples!r} must be the number of this rank's samples in the batch, 0 or more"
    return None
