"""Every method takes the same steps on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mpi4py import MPI

from hpcopt.comm.communicator import Communicator
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Batch, Vector
from hpcopt.solvers.registry import SOLVERS, make_solver
from hpcopt.train.minimize import minimize
from tests.support.listeners import Ear
from tests.support.problems import loss_for, sharded

pytestmark = pytest.mark.mpi

ITERATIONS = 20
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "apts": [{}, {"combination": "sum", "local_solver": "first_order"}, {"preset": "paper"}],
    "sgd": [{"learning_rate": 0.5}, {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "schedule": "cosine"}],
    "adam": [{"learning_rate": 0.01}],
    "lars": [{"learning_rate": 0.5}],
    "lbfgs": [{}],
    "nlcg": [
        {},
        {"preconditioner": "identity"},
        {"preset": "paper", "warmup_epochs": 2.0, "learning_rate": 0.5},
        {"step_rule": "strong_wolfe", "preconditioner": "diagonal_bfgs"},
        {"step_rule": "hager_zhang", "preconditioner": "gauss_newton_diagonal", "beta": "hz"},
    ],
    "newton": [{"damping": 10.0}, {"subset": 0.3, "subset_least": 1, "combine": False, "cg_tolerance": 0.1}],
    "slimtrain": [{"memory": 2}],
    "trust_region": [{}, {"model": "first_order"}, {"model": "lsr1"}, {"model": "lbfgs"}],
}
CASES = [(name, options) for name in sorted(SOLVERS) for options in OPTIONS[name]]
SPLIT_BY_RANKS = {"apts"}
"""Methods whose steps are those of each rank's own samples: their number of ranks is part of the method."""


def curve(comm: Communicator, name: str, options: dict[str, Any], batch: int | str) -> tuple[np.ndarray, Vector]:
    """Loss at the start of each iteration, the same on all ranks, and the final parameters."""
    objective, ear = sharded(comm, loss_for(name), weight_decay=0.01), Ear()
    solver = make_solver(name, options, 10.0)
    result = minimize(objective, solver, iterations=ITERATIONS, batch=batch, listeners=[ear])
    losses = np.full(ITERATIONS, math.nan)
    losses[: len(ear.iterations)] = [row["loss"] for row in ear.iterations]
    return np.array(comm.broadcast_object(losses)), result.parameters


@pytest.mark.parametrize(("name", "options"), [case for case in CASES if case[0] not in SPLIT_BY_RANKS])
@pytest.mark.parametrize("batch", ["full", 12])
def test_loss_curves_equal_those_of_one_rank(
    comm: Communicator, name: str, options: dict[str, Any], batch: int | str
) -> None:
    ours, w = curve(comm, name, options, batch)
    theirs, v = curve(Communicator(MPI.COMM_SELF), name, options, batch)
    assert np.isfinite(theirs).sum() >= 5, "the curve must have something to compare"
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    torch.testing.assert_close(w, v, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_all_ranks_hold_the_same_variables_bit_for_bit(comm: Communicator, name: str, options: dict[str, Any]) -> None:
    _, w = curve(comm, name, options, "full")
    assert torch.equal(comm.bcast(w.clone()), w)


class FailsAt(DataParallelObjective):
    """Rank 1 (or the only one) sees NaN in its j-th evaluation."""

    at = 0
    seen = 0

    def reduced_gradient(self, w: Vector, batch: Batch, evaluate: Callable[[Vector], float]) -> tuple[float, Vector]:
        struck = self._poison(w) is not w

        def evaluate_or_fail(out: Vector) -> float:
            return evaluate(out) + float(out.fill_(math.nan)[0]) if struck else evaluate(out)

        return super().reduced_gradient(w, batch, evaluate_or_fail)

    def value_and_gradient(self, w: Vector, batch: Batch) -> tuple[float, Vector]:
        return super().value_and_gradient(self._poison(w), batch)

    def value_and_gradients(self, w: Vector, batch: Batch) -> tuple[float, Vector, float, Vector]:
        return super().value_and_gradients(self._poison(w), batch)

    def _poison(self, w: Vector) -> Vector:
        self.seen += 1
        if self.seen != self.at or self.comm.rank != min(1, self.comm.size - 1):
            return w
        poisoned = w.clone()
        poisoned[0] = math.nan
        return poisoned


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("at", [1, 2, 4])
def test_nan_on_one_rank_is_rejected_on_all_and_the_run_goes_on(
    comm: Communicator, name: str, options: dict[str, Any], at: int
) -> None:
    objective = sharded(comm, loss_for(name))
    objective.__class__ = FailsAt
    objective.at = at  # type: ignore[attr-defined]
    result = minimize(objective, make_solver(name, options, 10.0), iterations=8)
    assert objective.seen >= at, "the fault must have happened"  # type: ignore[attr-defined]
    assert bool(result.parameters.isfinite().all())
    assert torch.equal(comm.bcast(result.parameters.clone()), result.parameters)
    assert result.final.train_loss < result.initial.train_loss
