"""The problem on which Wang et al.'s variants are compared, on a grid of ranks, and what a run on it came to.

784-128-64-10, sigmoid, squared loss, 2,000 images of mnist-5k to train and 1,000 to test, 15 incoming weights a unit,
the Gauss-Newton matrix on a fifth of the batch, full batches, the paper's options otherwise. f counts |o - y|^2 once,
as Wang et al. 2018 do, so it is twice the objective; in its units the first lambda is 1 and the weight decay 1 / l, l
the number of images.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcopt.comm.communicator import Communicator
from hpcopt.config import parse_job
from hpcopt.train.job import PreparedJob

JOB = """
[run]
device = "cpu"
[data]
source = "mnist-5k"
limit = 2000
standardize = false
[model]
widths = [128, 64]
activation = "sigmoid"
init = "sparse"
[loss]
name = "squared"
weight_decay = 0.00025
[solver]
name = "newton"
preset = "paper"
subset = 0.2
damping = 0.5
[parallel]
layout = "variables"
"""


class Outcome:
    """The rows of a run's record, on the rank that is told."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.looks: list[dict[str, Any]] = []

    def iteration(self, **columns: Any) -> None:
        """A step."""
        self.steps.append(columns)

    def evaluation(self, **columns: Any) -> None:
        """A look at the whole sets."""
        self.looks.append(columns)

    def rank_times(self, *_: Any) -> None:
        """Of no interest here."""

    @property
    def f(self) -> float:
        """At the end."""
        return 2 * float(self.steps[-1]["loss_after"])

    @property
    def accuracies(self) -> np.ndarray:
        """Of the test set at every look, in percent."""
        return np.array([100 * row["test_accuracy"] for row in self.looks])

    @property
    def counts(self) -> np.ndarray:
        """Iterations of conjugate gradients, (steps, ranks), or (steps, 1) where all ranks make the same."""
        return np.array([row["local_iterations"] or (row["inner_iterations"],) for row in self.steps])

    @property
    def seconds(self) -> np.ndarray:
        """Of every step."""
        return np.diff([row["seconds"] for row in self.steps], prepend=0.0)


def run(comm: Communicator, *settings: str) -> Outcome:
    """A run on all ranks. *Collective*; rank 0 knows what came of it."""
    outcome = Outcome()
    prepared(comm, *settings).run(None, listeners=[outcome])
    return outcome


def prepared(comm: Communicator, *settings: str) -> PreparedJob:
    """The problem with these settings on top. *Collective*."""
    return PreparedJob(parse_job(JOB, list(settings)), comm)
