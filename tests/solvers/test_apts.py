"""APTS on one rank: convergence without a key set, its radii, its state and its options. tests/mpi has the rest."""

import math

import pytest
import torch

from hpcopt.errors import UsageError
from hpcopt.objective.protocol import Batch
from hpcopt.solvers.apts import APTS, MODELS
from hpcopt.solvers.registry import make_solver
from hpcopt.solvers.solver import StopReason
from hpcopt.solvers.start import evaluate_start
from tests.support.checks import assert_state_is_complete, assert_survives_fault, run
from tests.support.objectives import (
    FULL,
    FunctionObjective,
    QuadraticObjective,
    RosenbrockObjective,
    digits,
    mini_batches,
)

QUASI_NEWTON = ["lbfgs", "lsr1"]


@pytest.mark.parametrize("local", QUASI_NEWTON)
def test_rosenbrock_is_minimised_to_rounding(local):
    state, reports = run(APTS(local_solver=local), RosenbrockObjective(), 80)
    assert reports[-1].loss < 1e-12
    torch.testing.assert_close(state["parameters"], torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("local", MODELS)
def test_a_tame_quadratic_is_minimised(local):
    _, reports = run(APTS(local_solver=local), QuadraticObjective(6, 4.0), 60)
    assert reports[-1].loss < 1e-6 * reports[0].loss


@pytest.mark.parametrize("local", MODELS)
def test_mini_batches_train(local):
    objective = digits()
    state, reports = run(APTS(local_solver=local), objective, 40, batches=mini_batches(objective))
    assert all(report.stop is StopReason.RUNNING for report in reports)
    assert objective.value(state["parameters"], FULL) < 0.4 * reports[0].loss


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_presets_train(preset):
    objective = digits()
    solver = make_solver("apts", {"preset": preset})
    state, reports = run(solver, objective, 40, batches=mini_batches(objective))
    assert objective.value(state["parameters"], FULL) < 0.5 * reports[0].loss


def test_the_delivered_point_is_a_mean_of_the_iterates():
    objective = digits(torch.float64)
    solver, batches, iterates = APTS(average=0.75), mini_batches(objective), []
    state = solver.init(objective)
    for batch in batches:
        state, _ = solver.step(objective, state, batch)
        iterates.append(state["parameters"].clone())
    mean = iterates[0].clone()
    for count, iterate in enumerate(iterates[1:], start=2):
        mean += (iterate - mean) / (0.75 * count)
    torch.testing.assert_close(state["average"], mean)
    state, _ = solver.step(objective, state, FULL)
    torch.testing.assert_close(state["average"], state["parameters"])
    assert "average" not in APTS(average=0.0).init(objective)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_serves_the_global_pass(model):
    objective = digits()
    state, reports = run(APTS(global_solver=model), objective, 20, batches=mini_batches(objective))
    assert objective.value(state["parameters"], FULL) < 0.5 * reports[0].loss
    assert_state_is_complete(APTS(global_solver=model), digits())


def test_the_preset_of_the_paper_couples_as_published():
    paper = make_solver("apts", {"preset": "paper"})
    assert (paper.combination, paper.consistency, paper.budget) == ("sum", "loss", False)
    assert (paper.radius_initial, paper.radius_min, paper.radius_max) == (1.0, 1e-3, 4.0)
    assert (paper.accept, paper.shrink_below, paper.grow_above) == (0.25, 0.25, 0.75)
    assert make_solver("apts", {"preset": "paper", "combination": "mean"}).combination == "mean"


@pytest.mark.parametrize("local", MODELS)
def test_no_trial_leaves_the_budget(local):
    objective, seen = digits(torch.float64), []
    plain = objective.value_and_gradient
    solver = APTS(local_solver=local)
    state = solver.init(objective)
    assert evaluate_start(objective, state, FULL, own=True).finite
    origin, budget = state["parameters"].clone(), 0.3

    def watched(w, batch):
        seen.append(float(torch.linalg.vector_norm(w - origin)))
        return plain(w, batch)

    objective.value_and_gradient = watched
    for _ in range(3):  # the second and third phase have pairs from the start
        state["step_radius"] = budget
        found = solver._local_phase.run(objective, state, FULL)
        assert found.reach == pytest.approx(float(torch.linalg.vector_norm(found.step)))
        assert found.decrease > 0
    assert max(seen) <= budget * (1 + 1e-9)
    assert max(seen) > 0.5 * budget


def test_memories_stay_from_phase_to_phase():
    objective = digits()
    state, _ = run(APTS(local_memory=6, global_memory=6), objective, 6)
    assert state["local_pairs_stored"] == 6
    assert state["pairs_stored"] == 6
    assert state["pairs"].data_ptr() != state["local_pairs"].data_ptr()


def test_the_next_batch_controls_the_radius():
    """The second batch pulls the other way: what the first one promised is not gained there."""

    def function(w, batch):
        return ((w - (1.0 if batch.key[1] == 0 else -1.0)) ** 2).sum()

    one, other = (Batch(torch.arange(1), 1, 1, (0, k)) for k in range(2))
    solver = APTS(radius_initial=0.1)
    against = FunctionObjective(function, torch.zeros(3, dtype=torch.float64))
    state, _ = run(solver, against, 1, batches=[one])
    assert state["step_radius"] == pytest.approx(0.1)
    _, reports = run(solver, against, 1, state, [other])
    assert reports[0].radius == pytest.approx(0.05)
    along = FunctionObjective(function, torch.zeros(3, dtype=torch.float64))
    _, reports = run(solver, along, 2, batches=[one])
    assert reports[1].radius == pytest.approx(0.15)
    _, reports = run(APTS(radius_initial=0.1, radius_control="batch"), against, 1, batches=[one])
    assert reports[0].radius == pytest.approx(0.2)


def test_the_value_at_the_old_point_is_the_only_extra_cost_of_a_mini_batch():
    objective = digits()
    _, reports = run(APTS(), objective, 10, batches=mini_batches(objective))
    assert objective.work.values == 9
    assert objective.work.gradients == sum(report.inner_iterations for report in reports) + 3 * 10
    objective = digits()
    _, reports = run(APTS(), objective, 10)
    assert objective.work.values == 0
    assert objective.work.gradients == sum(report.inner_iterations for report in reports) + 1 + 2 * 10


@pytest.mark.parametrize("where", ["loss", "gradient", "both"])
@pytest.mark.parametrize("at", [0, 1, 2, 5])
def test_a_nan_is_a_rejected_step(at, where):
    assert_survives_fault(APTS(), QuadraticObjective(), at, where, steps=20)


@pytest.mark.parametrize("local", MODELS)
@pytest.mark.parametrize("kind", ["full", "mini"])
def test_the_state_is_complete(local, kind):
    objective = digits()
    batches = mini_batches(objective) if kind == "mini" else None
    assert_state_is_complete(APTS(local_solver=local), objective, 5, batches)


def test_a_zero_gradient_is_a_good_end():
    _, reports = run(APTS(), FunctionObjective(lambda w, _: (w - 1).square().sum(), torch.ones(3)), 5)
    assert [report.stop for report in reports] == [StopReason.GRADIENT_SMALL]


@pytest.mark.parametrize("trials", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_minimum_found_to_rounding_is_a_good_end(dtype, trials):
    start = torch.tensor([1.0, 2.0, -1.0], dtype=dtype)
    objective = FunctionObjective(lambda w, _: 1 + (w - 0.3).square().sum(), start)
    _, reports = run(APTS(global_iterations=trials), objective, 200)
    assert reports[-1].stop is StopReason.GRADIENT_SMALL


def test_the_report_fits_the_step():
    objective = digits(torch.float64)
    solver = APTS()
    state = solver.init(objective)
    for _ in range(10):
        before = state["parameters"].clone()
        state, report = solver.step(objective, state, FULL)
        moved = float(torch.linalg.vector_norm(state["parameters"] - before))
        assert report.step_norm == pytest.approx(moved, rel=1e-9, abs=1e-12)
        assert report.accepted == (moved > 0)
        assert report.loss_after == pytest.approx(objective.value(state["parameters"], FULL), rel=1e-12)
        assert report.predicted > 0
        assert math.isfinite(report.rho)
        assert 1 <= report.inner_iterations <= 5
        assert report.radius == state["step_radius"]


def test_a_local_solve_without_room_does_nothing():
    objective = digits(torch.float64)
    solver = APTS()
    state = solver.init(objective)
    evaluate_start(objective, state, FULL, own=True)
    found = solver._local_phase.run(objective, state | {"step_radius": 0.0}, FULL)
    assert (found.reach, found.decrease, found.iterations) == (0.0, 0.0, (0,))


def test_the_window_accepts_what_is_below_an_earlier_loss():
    objective = digits(torch.float64)
    plain = objective.value_and_gradients
    for window, accepted in ((1, False), (3, True)):
        objective.value_and_gradients = plain
        solver = APTS(window=window, global_iterations=0)
        state, first = solver.step(objective, solver.init(objective), FULL)
        between = 0.9 * first.loss_after + 0.1 * first.loss
        objective.value_and_gradients = lambda w, batch, loss=between: (loss, *plain(w, batch)[1:])
        _, second = solver.step(objective, state, FULL)
        assert second.accepted is accepted


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"local_solver": "lbfg"}, "did you mean 'lbfgs'"),
        ({"global_solver": "adagrad"}, "must be one of 'lbfgs', 'lsr1', 'first_order', 'adam'"),
        ({"window": 0}, "window = 0 must be a whole number of at least 1"),
        ({"combination": "average"}, "must be one of 'mean', 'sum'"),
        ({"consistency": "half"}, "must be one of"),
        ({"local_iterations": 0}, "local_iterations = 0 must be a whole number of at least 1"),
        ({"global_iterations": -1}, "at least 0"),
        ({"radius_min": 2, "radius_max": 1}, "APTS: radius_min = 2 must be at most radius_max"),
        ({"radius_initial": 5, "radius_max": 4}, "radius_initial = 5"),
        ({"next_shrink_below": 0.4}, "at most next_grow_above"),
        ({"next_grow": 1.0}, "above 1"),
        ({"local_start": 1.5}, "at most 1"),
        ({"budget": 1}, "must be true or false"),
    ],
)
def test_wrong_options_are_refused_with_the_rule(options, words):
    with pytest.raises(UsageError, match=words):
        APTS(**options)
