"""APTS where the numbers of one rank are not finite: the others neither wait nor take them over."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Batch, Vector
from hpcopt.solvers.apts import APTS
from tests.mpi.test_apts import steps, unequal
from tests.support.closures import same_everywhere

pytestmark = pytest.mark.mpi


class Poisoned:
    """The local part of an objective whose evaluations on one rank are NaN from the first to ``until``."""

    def __init__(self, local: Any, until: int) -> None:
        self.local, self.left = local, until
        self.struck = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.local, name)

    def value_and_gradient(self, w: Vector, batch: Batch) -> tuple[float, Vector]:
        loss, gradient = self.local.value_and_gradient(w, batch)
        if self.left > 0:
            self.left -= 1
            self.struck += 1
            return math.nan, gradient.fill_(math.nan)
        return loss, gradient


@pytest.mark.parametrize("until", [1, 5, 1000])
def test_nan_in_one_ranks_local_phase_costs_that_ranks_trials_only(comm: Communicator, until: int) -> None:
    objective = unequal(comm)
    poisoned = Poisoned(objective.local, until if comm.rank == comm.size - 1 else 0)
    objective.local = poisoned  # type: ignore[assignment]
    start = objective.value(objective.initial_vector(), objective.full_batch)
    state, _ = steps(APTS(), objective, 8)
    assert poisoned.struck > 0 or comm.rank != comm.size - 1
    assert same_everywhere(comm, state["parameters"])  # type: ignore[arg-type]
    assert bool(state["parameters"].isfinite().all())  # type: ignore[union-attr]
    assert objective.value(state["parameters"], objective.full_batch) < start  # type: ignore[arg-type]


class Fails(DataParallelObjective):
    """The last rank that has samples sees NaN in global evaluation number ``at``, counted from 1."""

    at = 0
    seen = 0

    def _poison(self, w: Vector, batch: Batch) -> Vector:
        self.seen += 1
        if self.seen != self.at:
            return w
        counts = self.comm.allgather_objects(batch.count)
        if self.comm.rank != max(rank for rank, count in enumerate(counts) if count):
            return w
        poisoned = w.clone()
        poisoned[0] = math.nan
        return poisoned

    def value_and_gradient(self, w: Vector, batch: Batch) -> tuple[float, Vector]:
        return super().value_and_gradient(self._poison(w, batch), batch)

    def value_and_gradients(self, w: Vector, batch: Batch) -> tuple[float, Vector, float, Vector]:
        return super().value_and_gradients(self._poison(w, batch), batch)


@pytest.mark.parametrize("total", [None, 12])
@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_nan_on_one_rank_is_a_rejection_on_all(comm: Communicator, at: int, total: int | None) -> None:
    objective = unequal(comm)
    start = objective.value(objective.initial_vector(), objective.full_batch)
    objective.__class__ = Fails
    objective.at = at  # type: ignore[attr-defined]
    state, reports = steps(APTS(), objective, 8, total)
    assert sum(not report.finite for report in reports) == 1
    assert same_everywhere(comm, state["parameters"])  # type: ignore[arg-type]
    assert bool(state["parameters"].isfinite().all())  # type: ignore[union-attr]
    after = objective.value(state["parameters"], objective.full_batch)  # type: ignore[arg-type]
    assert after < (1.0 if total is None else 1.2) * start


def test_a_combined_step_that_is_not_finite_shrinks_the_radius(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = unequal(comm)
    plain = DataParallelObjective.combine

    def broken(self: DataParallelObjective, vector: Vector, *others: Any) -> Any:
        if self.comm.rank == self.comm.size - 1:
            vector = vector * math.inf
        return plain(self, vector, *others)

    monkeypatch.setattr(DataParallelObjective, "combine", broken)
    solver = APTS(global_iterations=0, radius_initial=0.5)
    before = objective.initial_vector()
    state, report = solver.step(objective, solver.init(objective), objective.full_batch)
    assert not report.finite
    assert not report.accepted
    assert report.radius == pytest.approx(0.05)
    assert torch.equal(state["parameters"], before)  # type: ignore[arg-type]
