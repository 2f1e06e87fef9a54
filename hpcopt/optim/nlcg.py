"""NLCG as an optimiser of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from hpcopt.errors import UsageError
from hpcopt.objective.protocol import Vector
from hpcopt.optim.model_optimizer import ModelOptimizer
from hpcopt.optim.one_vector import AveragingOptimizer
from hpcopt.solvers import nlcg as solvers_nlcg
from hpcopt.solvers.solver import Solver, State

NOTHING_BEFORE: State = {"has_previous": False, "has_direction": False, "restart": True, "promised": 0.0, "averaged": 0}
"""What the states of the step rules hold before the first step, of what is of the last one."""


class NLCG(ModelOptimizer, AveragingOptimizer):
    """Preconditioned nonlinear conjugate gradients, for a training loop of the user's own. *Collective*.

    Every rank has the same model and its own samples, and calls ``step`` equally often, on batches of some thousand
    samples or on all of them. There is no learning rate, and so nothing for a scheduler of learning rates to change.

    Args:
        model: any torch module, with one precision and one device. Rank 0's values are copied to all ranks. Parameters
            with ``requires_grad=False`` are left alone.
        loss_fn: "cross_entropy", "squared", or a torch callable that returns the mean over samples; convex in the
            model's outputs.
        comm: the ranks that share the samples: a communicator of mpi4py or of hpcopt; None for all of the job.
        preset: "default" or "paper"; the latter with ``warmup_epochs=0, schedule="constant"``, since a loop of the
            user's own does not tell the epochs that its rate follows.
        weight_decay: coefficient of |w|^2 / 2, added to the loss.
        full_batch: every step gets the same samples. What is known from the last step is then not evaluated again.
        micro_batch: most samples in one forward pass on a rank; larger batches are accumulated. None for no limit.
        seed: of dropout masks, and of what the preconditioner draws.
        options: any option of ``hpcopt.solvers.NLCG``. All arguments are the same on all ranks.

    Attributes:
        report: the ``StepReport`` of the last step, None before the first: whether it was accepted, its ratio rho, the
            damping, the points tried, and on full batches a reason to stop.

    Raises:
        UsageError: on all ranks; the parameters, the loss or an option cannot be used.
    """

    METHOD = "nlcg"

    def _make(self, options: Mapping[str, Any]) -> Solver:
        solver = cast(solvers_nlcg.NLCG, super()._make(options))
        if solver.step_rule == "control" and (solver.warmup_epochs or solver.schedule != "constant"):
            raise UsageError(
                f'NLCG: the rate of step_rule = "control" follows the epochs of a run (warmup_epochs ='
                f" {solver.warmup_epochs:g}, schedule = {solver.schedule!r}), which a loop of your own does not tell. "
                'Set warmup_epochs = 0 and schedule = "constant", or train by a job file'
            )
        return solver

    def _forget(self) -> None:
        super()._forget()
        if "average" in self._state:
            cast(Vector, self._state["average"]).copy_(self._parameters)
        self._state |= {key: value for key, value in NOTHING_BEFORE.items() if key in self._state}
