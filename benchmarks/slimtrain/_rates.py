"""Runs of slimTrain and of Adam at several learning rates, for the benchmarks beside this file. Nothing is timed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from hpcopt.comm.communicator import Communicator
from hpcopt.config import parse_job, read_job
from hpcopt.objective.protocol import Batch, Objective
from hpcopt.solvers.slimtrain import SlimTrain, theta_solver
from hpcopt.solvers.solver import State, StepReport
from hpcopt.train.job import PreparedJob
from hpcopt.train.protocol import Result

JOBS = Path(__file__).resolve().parents[2] / "jobs"
METHODS: dict[str, dict[str, Any]] = {
    "Adam": {"name": "adam"},
    "Adam, falling rate": {"name": "adam", "schedule": "linear"},
    "Adam, refitted": {"name": "slimtrain", "rate_growth": 1.0},
    "slimTrain, preset paper": {"name": "slimtrain", "preset": "paper"},
    "slimTrain, constant rate": {"name": "slimtrain", "rate_growth": 1.0, "schedule": "constant"},
    "slimTrain": {"name": "slimtrain"},
}
"""Name in the tables -> solver of the job file. "Adam, refitted" is Adam on all variables with a falling rate,
delivered with the mean and the last layer that slimTrain has at the end of an epoch."""


@dataclass(frozen=True, kw_only=True)
class RefittedAdam(SlimTrain):
    """Adam on all variables; only the point that is delivered has the last layer of slimTrain."""

    def step(self, objective: Objective, state: State, batch: Batch) -> tuple[State, StepReport]:
        """One step of Adam. *Collective*."""
        state, report = theta_solver(self, "adam").step(objective, state, batch)
        self._deliver(objective, state, batch)
        return state, report


def arguments(description: str | None, epochs: int) -> argparse.ArgumentParser:
    """What the benchmarks have in common."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path)
    return parser


def trained(job: Path, method: str, rate: float, seed: int, settings: Sequence[str]) -> tuple[PreparedJob, Result]:
    """One run of the job file."""
    given = [f"solver.{key}={json.dumps(value)}" for key, value in (METHODS[method] | {"learning_rate": rate}).items()]
    prepared = PreparedJob(parse_job(read_job(job), [f"run.seed={seed}", *settings, *given]), Communicator())
    if method == "Adam, refitted":
        prepared.solver = RefittedAdam(**vars(prepared.solver))
    return prepared, prepared.run(None)


def losses(result: Result, epochs: Sequence[int]) -> list[float]:
    """Test losses after these epochs."""
    found = {round(row["epoch"]): row["test_loss"] for row in result.history}
    return [found.get(epoch, float("nan")) for epoch in epochs]


def medians(rows: Sequence[Sequence[float]]) -> list[float]:
    """The median of each column."""
    return [median(column) for column in zip(*rows, strict=True)]


def text(numbers: Sequence[float]) -> str:
    """Numbers of three digits with slashes between them."""
    return " / ".join(f"{number:.3g}" for number in numbers)
