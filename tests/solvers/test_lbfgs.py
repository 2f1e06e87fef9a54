"""L-BFGS with a strong Wolfe line search, and its manners."""

from itertools import pairwise

import pytest
import torch

from hpcopt.errors import UsageError
from hpcopt.solvers.lbfgs import LBFGS
from hpcopt.solvers.solver import StopReason
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


@pytest.mark.parametrize("size", [2, 10])
def test_rosenbrock_is_minimised_to_rounding(size):
    _, reports = run(LBFGS(), RosenbrockObjective(size), 150)
    assert reports[-1].loss < 1e-12


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 1e-3), (torch.float64, 1e-6)])
def test_an_ill_conditioned_quadratic_is_minimised(dtype, accuracy):
    objective = QuadraticObjective(10, 1e4, dtype)
    state, _ = run(LBFGS(), objective, 200)
    torch.testing.assert_close(state["parameters"], torch.ones(10, dtype=dtype), rtol=0, atol=accuracy)


def test_it_needs_no_more_gradients_than_scipy():
    from scipy.optimize import minimize

    objective = RosenbrockObjective(10)
    state, _ = run(LBFGS(), objective, 60)
    objective_scipy = RosenbrockObjective(10)

    def function(w):
        loss, gradient = objective_scipy.value_and_gradient(torch.tensor(w), FULL)
        return loss, gradient.numpy()

    options = {"maxfun": int(objective.work.gradients), "maxcor": 10, "ftol": 0, "gtol": 0}
    found = minimize(function, objective.start.numpy(), jac=True, method="L-BFGS-B", options=options)
    assert objective.value(state["parameters"], FULL) < max(100 * found.fun, 1e-12)


def test_a_network_is_trained_on_the_full_batch_and_the_loss_never_rises():
    _, reports = run(LBFGS(), digits(), 50)
    losses = [report.loss for report in reports]
    assert all(after <= before for before, after in pairwise(losses))
    assert losses[-1] < 1e-3


def test_mini_batches_train_too():
    objective = digits()
    state, reports = run(LBFGS(), objective, 80, batches=mini_batches(objective))
    assert objective.value(state["parameters"], FULL) < 0.1 * reports[0].loss


def test_the_gradient_at_the_end_is_the_next_start_on_a_full_batch():
    objective = digits()
    _, reports = run(LBFGS(), objective, 10)
    assert objective.work.gradients == 1 + sum(report.inner_iterations for report in reports)


@pytest.mark.parametrize("where", ["loss", "gradient", "both"])
@pytest.mark.parametrize("at", [0, 1, 6])
def test_a_nan_never_reaches_the_parameters(at, where):
    assert_survives_fault(LBFGS(), QuadraticObjective(), at, where)


@pytest.mark.parametrize("kind", ["full", "mini"])
def test_the_state_is_complete(kind):
    objective = digits()
    batches = mini_batches(objective) if kind == "mini" else None
    assert_state_is_complete(LBFGS(memory=3), objective, 7, batches)


def test_two_failed_line_searches_in_a_row_end_a_full_batch_run_where_it_is():
    class Wrong(QuadraticObjective):
        def value_and_gradient(self, w, batch):
            loss, gradient = super().value_and_gradient(w, batch)
            return loss, -gradient

    objective = Wrong()
    state, reports = run(LBFGS(), objective, 10)
    assert [report.stop for report in reports] == [StopReason.RUNNING, StopReason.LINE_SEARCH_FAILED]
    assert torch.equal(state["parameters"], objective.start)
    assert not any(report.accepted for report in reports)


def test_failed_line_searches_on_mini_batches_end_nothing():
    objective = digits()
    faulty = FunctionObjective(lambda w, batch: objective.function(w, batch).detach() - w.sum() * 0, objective.start)
    faulty.value_and_gradient = lambda w, batch: (float(objective.function(w, batch)), torch.ones_like(w) * 1e3)
    _, reports = run(LBFGS(evaluations=3), faulty, 6, batches=mini_batches(objective))
    assert len(reports) == 6


def test_a_direction_that_is_no_descent_is_replaced_by_steepest_descent():
    objective = RosenbrockObjective(4)
    solver = LBFGS()
    state, _ = run(solver, objective, 5)
    state["pairs"][1::2] *= -1  # every pair now says that the curvature is negative
    state["gram"][1::2] *= -1
    state["gram"][:, 1::2] *= -1
    state, report = solver.step(objective, state, FULL)
    assert report.accepted
    assert report.loss_after < report.loss
    assert state["pairs_stored"] == 1


def test_a_zero_gradient_is_a_good_end():
    _, reports = run(LBFGS(), FunctionObjective(lambda w, _: (w - 1).square().sum(), torch.ones(3)), 5)
    assert [report.stop for report in reports] == [StopReason.GRADIENT_SMALL]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_minimum_found_to_rounding_is_a_good_end(dtype):
    objective = FunctionObjective(
        lambda w, _: 1 + (w - 0.3).pow(4).sum() + (w - 0.3).square().sum(), torch.ones(3, dtype=dtype)
    )
    _, reports = run(LBFGS(), objective, 100)
    assert reports[-1].stop is StopReason.GRADIENT_SMALL


def test_a_nan_within_the_line_search_only_shortens_the_step():
    objective = FaultyObjective(RosenbrockObjective(4), 1)
    _, (report,) = run(LBFGS(), objective, 1)
    assert objective.injected == 1
    assert report.accepted
    assert not report.finite


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory": 0}, "whole number"),
        ({"evaluations": 0}, "whole number"),
        ({"armijo": 0.4, "curvature": 0.3}, "below curvature = 0.3"),
        ({"curvature": 1.0}, "above 0 and below 1"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        LBFGS(**options)
