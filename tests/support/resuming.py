"""Runs that are asked to stop after given iterations and start again, each time as a new process would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcopt.checkpoint.restore import Restored, newest_valid, restore
from hpcopt.checkpoint.store import CheckpointStore
from hpcopt.comm.communicator import Communicator
from hpcopt.config import CheckpointOptions
from hpcopt.data.batches import BatchGrowth
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.solvers.registry import make_solver
from hpcopt.train.evaluation import Evaluator
from hpcopt.train.keeper import CheckpointKeeper
from hpcopt.train.loop import TrainingLoop
from hpcopt.train.minimize import plan_batches
from hpcopt.train.protocol import Criteria, Result
from hpcopt.train.restored import snapshot_from
from hpcopt.train.run.requests import Requests
from hpcopt.train.sampler import Sampler
from tests.support.listeners import Ear
from tests.support.problems import loss_for, samples, sharded, small_network

TIMES = {"seconds", "wall_seconds", "seconds_waited"}
"""What a clock says may differ; everything else may not."""


class AsksOnce(Requests):
    """A request to stop that comes in the iteration with this number since the start; 0 for never."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at, self._asked = at, 0

    @property
    def pending(self) -> bool:
        self._asked += 1
        return self._asked == self._at


class Reader(Ear):
    """Gives what it was told as text."""

    def rows(self) -> list[str]:
        """All rows as text, which is the same only for the same bits, without what a clock says."""
        kept = [{k: v for k, v in row.items() if k not in TIMES} for row in (*self.iterations, *self.evaluations)]
        return [repr({k: float(v) if isinstance(v, (int, float)) else v for k, v in row.items()}) for row in kept]


@dataclass(frozen=True)
class Case:
    """A method on a problem."""

    solver: str
    options: dict[str, Any] = field(default_factory=dict)
    batch: int | str = "full"
    dtype: torch.dtype = torch.float64
    iterations: int = 7
    dropout: float = 0.0
    batch_norm: bool = False
    growth: BatchGrowth = field(default_factory=BatchGrowth)
    objective: Callable[..., DataParallelObjective] | None = None

    def __str__(self) -> str:
        words = [self.solver, *(f"{key}={value}" for key, value in self.options.items()), str(self.batch)]
        extra = [name for name in ("dropout", "batch_norm") if getattr(self, name)]
        return "-".join([*words, str(self.dtype).removeprefix("torch."), *extra])


class Started:
    """One start of a run: everything is built anew, and goes on from the newest checkpoint in ``directory``."""

    def __init__(self, comm: Communicator, case: Case, directory: Path | None, asks_at: int = 0) -> None:
        model = small_network(dropout=case.dropout, batch_norm=case.batch_norm).to(case.dtype)
        make = case.objective or sharded
        self.comm, self.case, self.ear = comm, case, Reader()
        self.objective = make(comm, loss=loss_for(case.solver), model=model, weight_decay=0.01, seed=3)
        self.solver = make_solver(case.solver, case.options, 10.0)
        device = self.objective.model.device
        self.sampler = Sampler(plan_batches(self.objective, case.batch, 0.0, 5), device, case.growth)
        self.restored: Restored | None = None
        self.snapshot, self.keeper = None, None
        if directory is not None:
            self._find(directory, asks_at)

    def _find(self, directory: Path, asks_at: int) -> None:
        found = newest_valid(self.comm, directory)
        if found is not None:
            self.restored = restore(self.comm, found)
            self.snapshot = snapshot_from(self.objective, self.solver, self.sampler, found)
        store, last = CheckpointStore(self.comm, directory), self.comm.rank == self.comm.size - 1
        requests = AsksOnce(asks_at if last else 0)
        self.keeper = CheckpointKeeper(self.objective, self.solver, self.sampler, store, CheckpointOptions(), requests)

    def loop(self) -> TrainingLoop:
        """The loop of this start; every two epochs it evaluates."""
        test = tuple(part[self.comm.rank :: self.comm.size].to(self.case.dtype) for part in samples()[:1])
        labels = samples()[1][self.comm.rank :: self.comm.size]
        evaluate = Evaluator(self.objective, (test[0], labels))
        criteria = Criteria(iterations=self.case.iterations, evaluate_every=0.5)
        ears = [self.ear] if self.comm.rank == 0 else []
        return TrainingLoop(self.objective, self.solver, self.sampler, evaluate, criteria, ears, self.keeper)

    def run(self) -> Result:
        """To the end, or to where it is asked to stop."""
        return self.loop().run(self.snapshot)


@dataclass
class Outcome:
    """What a run came to, in however many starts."""

    result: Result
    rows: list[str]
    contents: Restored
    iterations: list[dict[str, Any]]


def run_in_pieces(
    comm: Communicator,
    case: Case,
    directory: Path,
    pieces: Sequence[int] = (),
    between: Callable[[int], object] = lambda _: None,
) -> Outcome:
    """A run that stops after each of ``pieces`` iterations in turn, and then goes on to its end. *Collective*.

    ``between`` is called before every start but the first, with its number.
    """
    ear = Reader()
    for number, asks_at in enumerate((*pieces, 0)):
        if number:
            between(number)
        start = Started(comm, case, directory, asks_at)
        result = start.run()
        ear.iterations += start.ear.iterations
        ear.evaluations += start.ear.evaluations
    found = newest_valid(comm, directory)
    assert found is not None
    return Outcome(result, ear.rows(), restore(comm, found), ear.iterations)


def assert_same_bits(one: Outcome, other: Outcome) -> None:
    """Parameters, record, and everything that a checkpoint of the end holds, on this rank, are equal."""
    assert torch.equal(one.result.parameters, other.result.parameters)
    assert torch.equal(one.result.best_parameters, other.result.best_parameters)
    assert one.result.stop is other.result.stop
    for mine, its in zip(one.rows, other.rows, strict=True):
        assert mine == its
    assert_same_contents(one.contents.replicated, other.contents.replicated)
    assert one.contents.own is not None
    assert other.contents.own is not None
    assert_same_contents(one.contents.own, other.contents.own)


def assert_same_contents(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two checkpoints hold the same, but for what a clock said."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        if name.split("/")[-1] in TIMES:
            continue
        left, right = without_times(one, name, value), without_times(other, name, other[name])
        assert left.dtype == right.dtype, name
        assert left.tobytes() == right.tobytes(), name


def without_times(contents: dict[str, Any], name: str, value: Any) -> np.ndarray:
    """A value as an array; of the history without the columns that a clock has filled."""
    if name != "loop/history/rows":
        return np.asarray(value)
    columns = contents["loop/history/columns"].split()
    return np.asarray(value)[:, [i for i, column in enumerate(columns) if column not in TIMES]]
