"""slimTrain as an optimiser of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch

from hpcopt.errors import UsageError
from hpcopt.optim.model_optimizer import ModelOptimizer
from hpcopt.solvers import slimtrain as solvers_slimtrain
from hpcopt.solvers.solver import Solver


class SlimTrain(ModelOptimizer):
    """Least squares for the last layer, a first-order method for the others, in a loop of your own. *Collective*.

    Every rank has the same model and its own samples, and calls ``step`` equally often. The loss is half the squared
    distance of ``linear(features(inputs))`` from the targets.

    Args:
        features: all of the model before its last layer, any torch module, with one precision and one device. Rank 0's
            values are copied to all ranks. Parameters with ``requires_grad=False`` are left alone.
        linear: the last layer, a ``torch.nn.Linear``, ``Conv2d`` or ``ConvTranspose2d``.
        comm: the ranks that share the samples: a communicator of mpi4py or of hpcopt; None for all of the job.
        preset: "default" or "paper".
        weight_decay: coefficient of |theta|^2 / 2, with theta all variables but those of the last layer.
        micro_batch: most samples in one forward pass on a rank; larger batches are accumulated. None for no limit.
        seed: of dropout masks.
        options: any option of ``hpcopt.solvers.SlimTrain``, above all ``learning_rate``; ``schedule`` is "constant"
            and ``deliver`` "iterate", since a loop of the user's own does not tell its epochs. All arguments are the
            same on all ranks.

    Attributes:
        report: the ``StepReport`` of the last step, None before the first: whether it was accepted, and as ``damping``
            Lambda.

    Raises:
        UsageError: on all ranks; the layers or an option cannot be used.
    """

    METHOD = "slimtrain"

    def __init__(
        self,
        features: torch.nn.Module,
        linear: torch.nn.Module,
        *,
        comm: Any = None,
        preset: str = "default",
        weight_decay: float = 0.0,
        micro_batch: int | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if not isinstance(features, torch.nn.Module) or not isinstance(linear, torch.nn.Module):
            raise UsageError(
                f"SlimTrain was given {type(features).__name__} and {type(linear).__name__}; it needs two modules, what"
                " comes before the last layer and the last layer: hpcopt.optim.SlimTrain(features, linear)",
                collective=True,
            )
        given = {"comm": comm, "preset": preset, "weight_decay": weight_decay, "micro_batch": micro_batch, "seed": seed}
        super().__init__(torch.nn.Sequential(features, linear), "squared", **given, **options)

    def _make(self, options: Mapping[str, Any]) -> Solver:
        given = {"schedule": "constant", "deliver": "iterate", **options}
        solver = cast(solvers_slimtrain.SlimTrain, super()._make(given))
        if solver.warmup_epochs or solver.schedule != "constant" or solver.deliver != "iterate":
            raise UsageError(
                f"SlimTrain: the method follows the epochs of a run (warmup_epochs = {solver.warmup_epochs:g}, schedule"
                f" = {solver.schedule!r}, deliver = {solver.deliver!r}), which a loop of your own does not tell. Leave "
                "them out, or train by a job file"
            )
        return solver
