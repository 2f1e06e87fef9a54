"""Losses and accuracies over whole sets, each rank on its own samples, put together in one reduction."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hpcopt.errors import UsageError
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.losses import Loss, predictions_correct
from hpcopt.objective.protocol import Vector

CHUNK = 4096  # samples in one forward pass: keeps activations small, and is past the point where GEMMs get faster


@dataclass(frozen=True)
class Metrics:
    """Means over all samples of a set; NaN where a figure does not apply."""

    train_loss: float = math.nan
    train_accuracy: float = math.nan
    test_loss: float = math.nan
    test_accuracy: float = math.nan
    test_explained_variance: float = math.nan

    def score(self) -> tuple[float, float]:
        """What the best point is chosen by, higher is better: test accuracy, then test loss, else training loss."""
        loss = self.train_loss if math.isnan(self.test_loss) else self.test_loss
        accuracy, loss = (-math.inf if math.isnan(figure) else figure for figure in (self.test_accuracy, -loss))
        return accuracy, loss


class Evaluator:
    """Evaluates w on the training set and, where there is one, on the test set. *Collective*.

    Args:
        objective: holds the model, the loss and this rank's training samples.
        test: this rank's test inputs and targets; on all ranks or on none, and possibly empty.
        classification: whether outputs are class scores.
    """

    def __init__(
        self,
        objective: DataParallelObjective,
        test: tuple[torch.Tensor, torch.Tensor] | None,
        *,
        classification: bool,
    ) -> None:
        self._objective, self._test, self._classification = objective, test, classification
        given = objective.comm.allgather_objects(len(test[0]) if test else None, label="evaluation")
        if None in given and any(size is not None for size in given):
            raise UsageError(
                f"rank {given.index(None)} was given no test set, but others were; give every rank its part, which may "
                "be empty, or none of them any",
                collective=True,
            )
        self._test_size = sum(size or 0 for size in given)
        self._test_variance = self._variance(test[1]) if test and not classification else math.nan

    def __call__(self, w: Vector) -> Metrics:
        """All figures at w. *Collective*."""
        objective = self._objective
        objective.synchronize_buffers()
        shard = objective.shard
        shard.parameters.bind(w)
        shard.module.eval()
        try:
            sums = self._sums(*shard.evaluated())
            sums += self._sums(*self._test) if self._test else [0.0, 0.0, 0.0]
        finally:
            shard.module.train()
        return self._metrics(objective.comm.reduce_scalars(sums, label="evaluation"))

    def _sums(self, inputs: torch.Tensor, targets: torch.Tensor) -> list[float]:
        """Loss, correct predictions and squared error, summed over this rank's samples."""
        loss: Loss = self._objective.shard.loss
        chunk = min(CHUNK, self._objective.shard.micro_batch or CHUNK)
        sums = [0.0, 0.0, 0.0]
        with torch.no_grad():
            for x, y in zip(inputs.split(chunk), targets.split(chunk), strict=True):
                if not len(x):
                    continue
                outputs = self._objective.shard.module(x)
                sums[0] += float(loss.sum(outputs, y))
                if self._classification:
                    sums[1] += predictions_correct(outputs, y)
                else:
                    sums[2] += float((outputs - y.reshape(outputs.shape)).square().sum(dtype=torch.float64))
        return sums

    def _metrics(self, sums: list[float]) -> Metrics:
        train, test = self._objective.samples, self._test_size
        accuracy = self._classification
        return Metrics(
            train_loss=sums[0] / train,
            train_accuracy=sums[1] / train if accuracy else math.nan,
            # NaN says that there is no test set.
            test_loss=(sums[3] / test if math.isfinite(sums[3]) else math.inf) if test else math.nan,
            test_accuracy=sums[4] / test if test and accuracy else math.nan,
            test_explained_variance=1 - sums[5] / self._test_variance if self._test_variance > 0 else math.nan,
        )

    def _variance(self, targets: torch.Tensor) -> float:
        """Sum of squared distances of all ranks' test targets from their mean."""
        comm, values = self._objective.comm, targets.to(torch.float64)
        sums = comm.reduce_scalars(values.sum(0).flatten().tolist(), label="evaluation")
        mean = torch.tensor(sums, dtype=torch.float64) / max(self._test_size, 1)
        centred = values - mean.to(values).reshape(values.shape[1:])
        return comm.reduce_scalars([float(centred.square().sum())], label="evaluation")[0]
