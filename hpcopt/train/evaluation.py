"""Losses and accuracies over whole sets, and what the best point is chosen by."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpcopt.errors import UsageError
from hpcopt.objective.problem import Problem, Samples
from hpcopt.objective.protocol import Vector


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
    """

    def __init__(self, objective: Problem, test: Samples | None) -> None:
        self._objective, self._test = objective, test
        given = objective.comm.allgather_objects(test is not None, label="evaluation")
        if False in given and any(given):
            raise UsageError(
                f"rank {given.index(False)} was given no test set, but others were; give every rank its part, which "
                "may be empty, or none of them any",
                collective=True,
            )
        self._size, self._variance = objective.moments(test[1]) if test else (0.0, math.nan)

    def __call__(self, w: Vector) -> Metrics:
        """All figures at w. *Collective*."""
        train, test = self._objective.evaluate(w, self._test)
        samples, size, labels = self._objective.samples, self._size, self._objective.classification
        return Metrics(
            train_loss=train.loss / samples,
            train_accuracy=train.correct / samples if labels else math.nan,
            # NaN says that there is no test set.
            test_loss=(test.loss / size if math.isfinite(test.loss) else math.inf) if size else math.nan,
            test_accuracy=test.correct / size if size and labels else math.nan,
            test_explained_variance=(
                1 - test.squared_error / self._variance if self._variance > 0 and not labels else math.nan
            ),
        )
