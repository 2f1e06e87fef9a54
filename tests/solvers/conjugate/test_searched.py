"""Conjugate directions with a line search: their promises on small problems whose answer is known."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from hpcopt.errors import UsageError
from hpcopt.linalg.conjugacy import RULES
from hpcopt.solvers.conjugate.searched import ConjugateDirections
from hpcopt.solvers.nlcg import NLCG
from hpcopt.solvers.solver import StopReason
from tests.solvers.test_nlcg import Diagonal, conjugate_gradients
from tests.support.checks import assert_state_is_complete, assert_survives_fault, run
from tests.support.objectives import (
    FULL,
    FaultyObjective,
    FunctionObjective,
    QuadraticObjective,
    RosenbrockObjective,
    digits,
    mini_batches,
)

SEARCHES = ["strong_wolfe", "hager_zhang"]


def searched(rule: str, preconditioner: str = "identity", **options: Any) -> NLCG:
    return NLCG(step_rule=rule, preconditioner=preconditioner, **options)


@pytest.mark.parametrize("beta", RULES)
@pytest.mark.parametrize("search", SEARCHES)
def test_rosenbrock_is_minimised(search: str, beta: str) -> None:
    _, reports = run(searched(search, beta=beta), RosenbrockObjective(4), 300)
    assert reports[-1].loss < 1e-8


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 1e-2), (torch.float64, 1e-8)])
def test_an_ill_conditioned_quadratic_is_minimised(search: str, dtype: torch.dtype, accuracy: float) -> None:
    state, _ = run(searched(search, beta="hz"), QuadraticObjective(10, 1e3, dtype), 150)
    torch.testing.assert_close(state["parameters"], torch.ones(10, dtype=dtype), rtol=0, atol=accuracy)


@pytest.mark.parametrize("preconditioner", ["identity", "diagonal_bfgs", "gauss_newton_diagonal"])
@pytest.mark.parametrize("search", SEARCHES)
def test_a_network_is_trained_on_the_full_batch_and_the_loss_never_rises(search: str, preconditioner: str) -> None:
    _, reports = run(searched(search, preconditioner), digits(), 40)
    losses = [report.loss for report in reports]
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(losses))
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("search", SEARCHES)
def test_mini_batches_train_too(search: str) -> None:
    objective = digits()
    state, reports = run(searched(search), objective, 40, batches=mini_batches(objective))
    assert objective.value(state["average"], FULL) < 0.3 * reports[0].loss


@pytest.mark.parametrize("beta", ["fr", "pr", "hs", "dy"])
def test_exact_steps_in_a_metric_are_conjugate_gradients(beta: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that ends where the slope is 0 makes every rule the linear method, P and all."""
    monkeypatch.setattr("hpcopt.solvers.conjugate.searched.CURVATURE", 1e-8)
    objective, p = QuadraticObjective(8, 50.0), torch.linspace(0.5, 2.0, 8, dtype=torch.float64)
    rule = ConjugateDirections(searched("strong_wolfe", beta=beta), Diagonal(p=p))
    state = rule.init(objective)
    for expected in conjugate_gradients(objective.curvatures, p, objective.initial_vector(), 6):
        state, _ = rule.step(objective, state, FULL)
        torch.testing.assert_close(state["parameters"], expected, rtol=1e-5, atol=1e-5)


def test_a_diagonal_metric_takes_fewer_steps_than_none_where_the_curvature_is_diagonal() -> None:
    counts = []
    for preconditioner in ("identity", "gauss_newton_diagonal"):
        objective = QuadraticObjective(40, 1e4)
        _, reports = run(searched("hager_zhang", preconditioner), objective, 100)
        small = [report.loss_after < 1e-10 * reports[0].loss for report in reports]
        counts.append([*small, True].index(True))
    assert counts[1] < 15 < 45 < counts[0]


@pytest.mark.parametrize("search", SEARCHES)
def test_the_gradient_at_the_end_is_the_next_start_and_the_pair_of_the_preconditioner(search: str) -> None:
    objective = digits()
    _, reports = run(searched(search, "diagonal_bfgs"), objective, 10)
    assert objective.work.gradients == 1 + sum(report.inner_iterations for report in reports)
    assert objective.work.values == 10


@pytest.mark.parametrize("search", SEARCHES)
def test_the_report_says_how_far_it_went(search: str) -> None:
    objective = digits(torch.float64)
    solver = searched(search)
    state = solver.init(objective)
    for _ in range(8):
        before = state["parameters"].clone()
        state, report = solver.step(objective, state, FULL)
        assert report.step_norm == pytest.approx(float((state["parameters"] - before).norm()), rel=1e-7)
        assert report.loss_after == pytest.approx(objective.value(state["parameters"], FULL))


@pytest.mark.parametrize("search", SEARCHES)
def test_a_bound_of_0_leaves_no_part_of_the_previous_direction(search: str) -> None:
    objective, solver = digits(torch.float64), searched(search, beta_max=0.0)
    state, _ = run(solver, objective, 3)
    gradient = state["gradient"].clone()  # type: ignore[union-attr]
    state, _ = solver.step(objective, state, FULL)
    assert torch.equal(state["direction"], -gradient)  # type: ignore[arg-type]


@pytest.mark.parametrize("search", SEARCHES)
def test_a_direction_without_a_step_is_dropped_and_the_search_begins_anew(search: str) -> None:
    objective = digits()
    solver = searched(search)
    state, _ = run(solver, objective, 3)
    state["direction"] = -state["direction"]  # now one of ascent, with slopes that promise none
    state, report = solver.step(objective, state, FULL)
    assert report.accepted
    assert state["failures"] == 0


@pytest.mark.parametrize("search", SEARCHES)
def test_two_searches_without_a_step_end_a_run_on_full_batches(search: str) -> None:
    """The gradient points the wrong way, so that no step is found."""

    class Wrong(QuadraticObjective):
        def value_and_gradient(self, w, batch):  # type: ignore[no-untyped-def]
            loss, gradient = super().value_and_gradient(w, batch)
            return loss, -gradient

    objective = Wrong(4)
    state, reports = run(searched(search, evaluations=5), objective, 5)
    assert [report.stop for report in reports] == [StopReason.RUNNING, StopReason.LINE_SEARCH_FAILED]
    assert torch.equal(state["parameters"], objective.start)
    assert [report.inner_iterations for report in reports] == [5, 5]


def test_a_stationary_point_is_the_end() -> None:
    objective = FunctionObjective(lambda w, _: (w * w).sum(), torch.zeros(3, dtype=torch.float64))
    _, reports = run(searched("hager_zhang"), objective, 3)
    assert [report.stop for report in reports] == [StopReason.GRADIENT_SMALL]


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_what_is_not_finite_is_a_step_too_long(at: int, where: str, search: str) -> None:
    assert_survives_fault(searched(search), digits(), at, where)


def test_after_a_gradient_that_is_not_finite_the_previous_direction_is_dropped() -> None:
    inner = digits()
    solver = searched("strong_wolfe")
    state, _ = run(solver, inner, 3)
    state["known"] = False
    state, report = solver.step(FaultyObjective(inner, 0, "gradient"), state, FULL)
    assert not report.finite
    assert not state["has_direction"]


@pytest.mark.parametrize("preconditioner", ["identity", "diagonal_bfgs", "gauss_newton_diagonal"])
@pytest.mark.parametrize("search", SEARCHES)
def test_the_state_is_complete(search: str, preconditioner: str) -> None:
    objective = digits()
    assert_state_is_complete(searched(search, preconditioner, beta="hz"), objective, batches=mini_batches(objective))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beta": "cd"}, "beta = 'cd' must be one of 'fr', 'pr', 'hs', 'dy', 'hz'"),
        ({"beta_max": -1.0}, "beta_max = -1.0 must be a number of at least 0"),
        ({"learning_rate": 1.0}, 'learning_rate = 1.0 has no effect with step_rule = "hager_zhang"'),
        ({"layer_trust": 0.1}, 'Set solver.step_rule to "control"'),
        ({"step_rule": "plane", "beta": "fr"}, '"control" or "strong_wolfe" or "hager_zhang"'),
        ({"step_rule": "control", "evaluations": 3}, "evaluations = 3 has no effect"),
        ({"preconditioner": "released_diagonal_bfgs"}, 'needs step_rule = "control". Use "diagonal_bfgs"'),
        ({"step_rule": "control", "control": "off"}, "control = 'off' must be one of 'none', 'step', 'online'"),
        ({"step_rule": "control", "weight_average": 1.0}, "weight_average = 1.0 must be a number"),
    ],
)
def test_options_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as raised:
        NLCG(**({"step_rule": "hager_zhang"} | options))
    assert words in str(raised.value)
