"""Newton as an optimiser of torch."""

from __future__ import annotations

from hpcopt.optim.model_optimizer import ModelOptimizer


class Newton(ModelOptimizer):
    """Subsampled Gauss-Newton with conjugate gradients, for a training loop of the user's own. *Collective*.

    Every rank has the same model and its own samples, and calls ``step`` equally often, on batches as large as memory
    and time allow. There is no learning rate, and so nothing for a scheduler of learning rates to change.

    Args:
        model: any torch module that can be differentiated twice, with one precision and one device. Rank 0's values are
            copied to all ranks. Parameters with ``requires_grad=False`` are left alone.
        loss_fn: "cross_entropy", "squared", or a torch callable that returns the mean over samples; convex in the
            model's outputs.
        comm: the ranks that share the samples: a communicator of mpi4py or of hpcopt; None for all of the job.
        preset: "default" or "paper".
        weight_decay: coefficient of |w|^2 / 2, added to the loss.
        full_batch: every step gets the same samples. What is known from the last step is then not evaluated again.
        micro_batch: most samples in one forward pass on a rank; larger batches are accumulated. None for no limit.
        seed: of dropout masks, and of the subsets in the Gauss-Newton matrix.
        options: any option of ``hpcopt.solvers.Newton``. All arguments are the same on all ranks.

    Attributes:
        report: the ``StepReport`` of the last step, None before the first: whether it was accepted, its step length and
            ratio rho, the damping, the iterations of conjugate gradients, and on full batches a reason to stop.

    Raises:
        UsageError: on all ranks; the parameters, the loss or an option cannot be used.
    """

    METHOD = "newton"
