"""NLCG as an optimiser of torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from hpcopt.objective.protocol import Vector
from hpcopt.optim.model_optimizer import ModelOptimizer
from hpcopt.solvers.averaging import empty_average


class NLCG(ModelOptimizer):
    """Preconditioned nonlinear conjugate gradients, for a training loop of the user's own. *Collective*.

    Every rank has the same model and its own samples, and calls ``step`` equally often, on batches of some thousand
    samples or on all of them. There is no learning rate, and so nothing for a scheduler of learning rates to change.

    Args:
        model: any torch module, with one precision and one device. Rank 0's values are copied to all ranks. Parameters
            with ``requires_grad=False`` are left alone.
        loss_fn: "cross_entropy", "squared", or a torch callable that returns the mean over samples; convex in the
            model's outputs.
        comm: the ranks that share the samples: a communicator of mpi4py or of hpcopt; None for all of the job.
        preset: "default" or "paper".
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

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this block the model holds the running mean of its iterates, the better point to evaluate and to keep.

        On mini-batches the mean is smoother than the last iterate; after a full batch, or with ``average=0``, it is
        that iterate. At the end of the block the parameters are those of the last step again. Local.
        """
        parameters = self._objective.shard.parameters
        parameters.bind(cast(Vector, self._state.get("average", self._parameters)))
        try:
            yield
        finally:
            parameters.bind(self._parameters)

    def _forget(self) -> None:
        super()._forget()
        self._state |= {"has_previous": False, "promised": 0.0}
        if "average" in self._state:
            self._state |= empty_average(self._parameters)
