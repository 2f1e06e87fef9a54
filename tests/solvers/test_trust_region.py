"""The trust-region method: convergence without a key set, and its promises."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from hpcopt.errors import UsageError
from hpcopt.solvers.solver import StopReason
from hpcopt.solvers.trust_region import TrustRegion
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

QUASI_NEWTON = ["lsr1", "lbfgs"]
MODELS = [*QUASI_NEWTON, "first_order"]


@pytest.mark.parametrize("model", QUASI_NEWTON)
def test_rosenbrock_is_minimised_to_rounding(model):
    state, reports = run(TrustRegion(model=model), RosenbrockObjective(), 120)
    assert reports[-1].loss < 1e-12
    torch.testing.assert_close(state["parameters"], torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 1e-3), (torch.float64, 1e-6)])
@pytest.mark.parametrize("model", QUASI_NEWTON)
def test_an_ill_conditioned_quadratic_is_minimised(model, dtype, accuracy):
    objective = QuadraticObjective(10, 1e4, dtype)
    state, _ = run(TrustRegion(model=model), objective, 300)
    assert state["parameters"].dtype == dtype
    torch.testing.assert_close(state["parameters"], torch.ones(10, dtype=dtype), rtol=0, atol=accuracy)


def test_first_order_converges_on_a_tame_quadratic():
    _, reports = run(TrustRegion(model="first_order"), QuadraticObjective(6, 4.0), 150)
    assert reports[-1].loss < 1e-6 * reports[0].loss


@pytest.mark.parametrize("model", MODELS)
def test_the_loss_never_rises_on_a_full_batch(model):
    objective = digits()
    state, reports = run(TrustRegion(model=model), objective, 60)
    losses = [report.loss for report in reports]
    assert all(after <= before for before, after in pairwise(losses))
    for report, following in pairwise(reports):
        assert following.loss == (report.loss_after if report.accepted else report.loss)
    assert objective.value(state["parameters"], FULL) == pytest.approx(reports[-1].loss_after, rel=1e-6)


def test_the_default_trains_a_network_in_sixty_gradients():
    objective = digits()
    state, reports = run(TrustRegion(), objective, 60)
    accuracy = (objective.outputs(state["parameters"], objective.inputs).argmax(1) == objective.labels).float().mean()
    assert accuracy > 0.99
    assert reports[-1].loss < 0.05


def test_one_gradient_an_iteration_on_a_full_batch_and_two_on_a_mini_batch():
    objective = digits()
    run(TrustRegion(), objective, 10)
    assert objective.work.gradients == 11
    objective = digits()
    run(TrustRegion(), objective, 10, batches=mini_batches(objective))
    assert objective.work.gradients == 20


def test_a_model_that_draws_by_the_batch_key_is_evaluated_anew_for_another_key():
    objective = digits()
    objective.deterministic = False
    solver = TrustRegion()
    state = solver.init(objective)
    for number in range(5):
        state, _ = solver.step(objective, state, replace(FULL, key=(number, 0)))
    assert objective.work.gradients == 10


@pytest.mark.parametrize("model", MODELS)
def test_mini_batches_train_too(model):
    objective = digits()
    batches = mini_batches(objective)
    state, reports = run(TrustRegion(model=model), objective, 80, batches=batches)
    assert all(report.stop is StopReason.RUNNING for report in reports)
    assert objective.value(state["parameters"], FULL) < 0.35 * reports[0].loss


@pytest.mark.parametrize("where", ["loss", "gradient", "both"])
@pytest.mark.parametrize("at", [0, 1, 6])
@pytest.mark.parametrize("model", MODELS)
def test_a_nan_is_a_rejected_step(model, at, where):
    assert_survives_fault(TrustRegion(model=model), QuadraticObjective(), at, where, steps=20)


def test_a_trial_that_is_not_finite_shrinks_the_radius_to_a_tenth_and_feeds_no_pair():
    objective = FaultyObjective(QuadraticObjective(), 3, value=float("inf"))
    solver = TrustRegion()
    state, _ = run(solver, objective, 2)
    radius, pairs, gradient = state["radius"], state["pairs_stored"], state["gradient"].clone()
    state, _ = solver.step(objective, state, FULL)
    assert objective.injected == 1
    assert state["radius"] <= 0.1 * radius
    assert state["pairs_stored"] == pairs
    assert torch.equal(state["gradient"], gradient)
    assert bool(torch.isfinite(state["gram"]).all())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ["full", "mini"])
def test_the_state_is_complete(model, kind):
    objective = digits()
    batches = mini_batches(objective) if kind == "mini" else None
    memory = {} if model == "first_order" else {"memory": 3}
    assert_state_is_complete(TrustRegion(model=model, **memory), objective, 7, batches)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("units", [1e-3, 1e3])
def test_the_steps_do_not_depend_on_the_scale_of_loss_and_parameters(scale, units):
    def scaled(scale, units):
        plain = RosenbrockObjective(4)
        return FunctionObjective(lambda w, batch: scale * plain.function(w / units, batch), units * plain.start)

    _, plain = run(TrustRegion(), scaled(1.0, 1.0), 25)
    _, reports = run(TrustRegion(), scaled(scale, units), 25)
    assert [report.accepted for report in reports] == [report.accepted for report in plain]
    assert reports[-1].loss / scale == pytest.approx(plain[-1].loss, rel=1e-3)


def test_a_zero_gradient_is_a_good_end():
    _, reports = run(TrustRegion(), FunctionObjective(lambda w, _: (w - 1).square().sum(), torch.ones(3)), 5)
    assert [report.stop for report in reports] == [StopReason.GRADIENT_SMALL]
    assert not reports[0].accepted


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_minimum_found_to_rounding_is_a_good_end(model, dtype):
    start = torch.tensor([1.0, 2.0, -1.0], dtype=dtype)
    objective = FunctionObjective(lambda w, _: 1 + (w - 0.3).square().sum(), start)
    _, reports = run(TrustRegion(model=model), objective, 200)
    assert reports[-1].stop is StopReason.GRADIENT_SMALL
    assert len(reports) < 150


def test_a_wrong_gradient_ends_with_the_smallest_radius():
    class Wrong(QuadraticObjective):
        def value_and_gradient(self, w, batch):
            loss, gradient = super().value_and_gradient(w, batch)
            return loss, -gradient

    _, reports = run(TrustRegion(), Wrong(), 200)
    assert reports[-1].stop is StopReason.RADIUS_SMALL
    assert not any(report.accepted for report in reports)


def test_negative_curvature_is_followed_away_from_a_saddle():
    def function(w, _):
        return w[0] ** 2 - w[1] ** 2 + 0.25 * w[1] ** 4

    start = torch.tensor([1.0, 1e-3], dtype=torch.float64)
    _, reports = run(TrustRegion(), FunctionObjective(function, start), 60)
    assert reports[-1].loss == pytest.approx(-1.0, abs=1e-9)


def test_the_report_fits_the_step():
    objective = digits(torch.float64)
    solver = TrustRegion()
    state = solver.init(objective)
    for _ in range(12):
        before, radius = state["parameters"].clone(), state["radius"]
        state, report = solver.step(objective, state, FULL)
        moved = float(torch.linalg.vector_norm(state["parameters"] - before))
        assert report.step_norm == pytest.approx(moved, rel=1e-9, abs=1e-12)
        assert report.accepted == (moved > 0)
        assert report.predicted > 0
        assert math.isfinite(report.rho)
        assert radius == 0 or report.step_norm <= radius * (1 + 1e-6)
        assert report.radius == state["radius"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "sr1"}, "did you mean 'lsr1'"),
        ({"memory": 0}, "memory = 0 must be a whole number of at least 1"),
        ({"memory": 2.5}, "whole number"),
        ({"radius_initial": -1}, "radius_initial = -1"),
        ({"radius_min": 2, "radius_max": 1}, "at most radius_max"),
        ({"accept": 0.5}, "from accept = 0.5"),
        ({"shrink": 1.0}, "above 0 and below 1"),
        ({"grow": 1.0}, "above 1"),
        ({"curvature_outside": 0}, "above 0"),
    ],
)
def test_wrong_options_are_refused_with_the_rule(options, words):
    with pytest.raises(UsageError, match=words):
        TrustRegion(**options)
