"""The Gauss-Newton method with Kronecker factors as its preconditioner."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.objective.curvature.fisher import MOST_OUTPUTS
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Objective
from hpcopt.solvers.newton import Newton
from hpcopt.solvers.preconditioners.kronecker import KroneckerFactors
from tests.support.checks import assert_state_is_complete, run
from tests.support.objectives import (
    digits,
)


def in_shares(comm: Communicator) -> DataParallelObjective:
    """The digits, as ranks hold them."""
    source = digits()
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
    torch.nn.utils.vector_to_parameters(
        torch.randn(2442, generator=torch.Generator().manual_seed(0)) / 8, model.parameters()
    )
    return DataParallelObjective(model, "cross_entropy", source.inputs, source.labels, comm, weight_decay=1e-3)


def test_lambda_is_in_the_metric_of_the_factors(comm: Communicator) -> None:
    """(G + lambda P^-1) d = -g: what is left of it, put through P, is G d + g through P, plus lambda d."""
    objective = in_shares(comm)
    options = {"combine": False, "damping": 0.5, "cg_tolerance": 1e-5, "preconditioned_iterations": 500}
    solver = Newton(subset=0.3, subset_least=1, **options)  # type: ignore[arg-type]
    state = solver.init(objective)
    w, batch = state["parameters"].clone(), objective.full_batch
    _, gradient = objective.value_and_gradient(w, batch)
    state, report = solver.step(objective, state, batch)
    step = (state["parameters"] - w) / report.step_size
    linear = objective.linearize(w, objective.subset(batch, round(0.3 * batch.total), 0))
    apply = partial(KroneckerFactors().apply, state)
    residual = apply(linear.gauss_newton(step).add_(gradient)).add_(step, alpha=0.5)
    assert residual.norm() <= 1e-3 * apply(gradient).norm()


def test_factors_need_fewer_steps_and_products(comm: Communicator) -> None:
    losses, work = {}, {}
    for kind in ("auto", "none"):
        objective = in_shares(comm)
        _, reports = run(Newton(preconditioner=kind), objective, 12)
        assert all(after.loss <= before.loss for before, after in pairwise(reports))
        losses[kind], work[kind] = reports[-1].loss_after, sum(report.inner_iterations for report in reports)
    assert losses["auto"] < 0.9 * losses["none"]
    assert work["auto"] == 12 < work["none"]


def test_factors_are_taken_where_the_objective_has_them(comm: Communicator) -> None:
    inputs, targets = torch.randn(6, 3), torch.zeros(6, dtype=torch.int64)

    def has_factors(objective: Objective, **options: Any) -> bool:
        return "factors" in Newton(**options).init(objective)

    model, scaled = torch.nn.Linear(3, 2), torch.nn.LayerNorm(3)
    assert has_factors(DataParallelObjective(model, "cross_entropy", inputs, targets, comm))
    assert not has_factors(DataParallelObjective(scaled, "cross_entropy", inputs, targets, comm)), "no such layer"
    wide = torch.nn.Linear(3, MOST_OUTPUTS + 1)
    own = DataParallelObjective(wide, lambda out, labels: cross_entropy(out, labels), inputs, targets, comm)
    assert not has_factors(own), "targets are drawn for a few outputs only when the loss is not known"
    with pytest.raises(UsageError, match="empirical"):
        has_factors(own, preconditioner="kronecker")
    assert not has_factors(digits()), "the objective has none to offer"


def test_the_state_with_factors_is_complete(comm: Communicator) -> None:
    assert_state_is_complete(Newton(subset=0.25, subset_least=100), in_shares(comm), 7)
