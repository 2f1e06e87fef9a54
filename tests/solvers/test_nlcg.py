"""Nonlinear conjugate gradients with the default step rule: its promises on small problems whose answer is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch

from hpcopt.errors import UsageError
from hpcopt.objective.protocol import Batch, Objective, Vector
from hpcopt.solvers.conjugate.plane import PlaneSearch
from hpcopt.solvers.nlcg import NLCG
from hpcopt.solvers.preconditioners.protocol import Identity
from hpcopt.solvers.solver import State, StopReason
from hpcopt.solvers.start import FAILURES
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

PLAIN = NLCG(preconditioner="identity")
UNDAMPED = NLCG(preconditioner="identity", damping=1e-8)


@dataclass(frozen=True, kw_only=True)
class Diagonal(Identity):
    """P = diag(p), which never changes."""

    p: torch.Tensor

    def apply(self, state: State, vector: Vector) -> Vector:
        return self.p * vector


def conjugate_gradients(c: torch.Tensor, p: torch.Tensor, w: torch.Tensor, steps: int) -> list[torch.Tensor]:
    """The textbook's iterates on 1/2 sum_i c_i (w_i - 1)^2 with the preconditioner diag(p)."""
    found, g = [], c * (w - 1)
    d = -p * g
    for _ in range(steps):
        step = (g @ (p * g)) / (d @ (c * d))
        w, after = w + step * d, g + step * c * d
        d = -p * after + (after @ (p * after)) / (g @ (p * g)) * d
        g = after
        found.append(w)
    return found


@pytest.mark.parametrize("preconditioned", [False, True])
def test_on_a_quadratic_the_iterates_are_those_of_conjugate_gradients(preconditioned: bool) -> None:
    objective = QuadraticObjective(8, 50.0)
    p = torch.linspace(0.5, 2.0, 8, dtype=torch.float64) if preconditioned else torch.ones(8, dtype=torch.float64)
    rule = PlaneSearch(UNDAMPED, Diagonal(p=p))
    state = rule.init(objective)
    for expected in conjugate_gradients(objective.curvatures, p, objective.initial_vector(), 6):
        state, report = rule.step(objective, state, FULL)
        torch.testing.assert_close(state["parameters"], expected, rtol=1e-6, atol=1e-7)
        assert report.rho == pytest.approx(1.0, abs=1e-6)


def test_a_quadratic_is_minimised_in_as_many_steps_as_it_has_variables() -> None:
    objective = QuadraticObjective(6, 10.0)
    state, _ = run(UNDAMPED, objective, 6)
    torch.testing.assert_close(state["parameters"], torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-6)


def test_the_inverse_of_the_curvature_as_preconditioner_takes_one_step() -> None:
    objective = QuadraticObjective(8, 1e4)
    rule = PlaneSearch(UNDAMPED, Diagonal(p=1 / objective.curvatures))
    state, _ = rule.step(objective, rule.init(objective), FULL)
    torch.testing.assert_close(state["parameters"], torch.ones(8, dtype=torch.float64), rtol=0, atol=1e-8)


def test_the_first_step_is_the_exact_one_along_the_preconditioned_gradient() -> None:
    objective = QuadraticObjective(5, 10.0)
    w = objective.initial_vector()
    g = objective.curvatures * (w - 1)
    state, report = run(UNDAMPED, objective, 1)
    length = float(g @ g / (g @ (objective.curvatures * g)))
    torch.testing.assert_close(state["parameters"], w - length * g, rtol=1e-8, atol=1e-9)
    assert report[0].step_size == pytest.approx(length)
    assert report[0].step_norm == pytest.approx(length * float(g.norm()))
    assert report[0].loss - report[0].loss_after == pytest.approx(report[0].predicted, rel=1e-6)


def test_lambda_is_added_to_the_model_in_the_plane() -> None:
    objective = FunctionObjective(lambda w, _: 0.5 * (w - 1).square().sum(), torch.zeros(3, dtype=torch.float64))
    state, _ = run(NLCG(preconditioner="identity", damping=1.0), objective, 1)
    torch.testing.assert_close(state["parameters"], torch.full((3,), 0.5, dtype=torch.float64))


def test_a_network_is_trained_on_the_full_batch_and_the_loss_never_rises() -> None:
    objective = digits()
    _, reports = run(PLAIN, objective, 40)
    losses = [report.loss for report in reports]
    assert all(after <= before for before, after in pairwise(losses))
    assert losses[-1] < 0.02
    assert objective.work.gradients == 1 + sum(report.inner_iterations == 1 for report in reports) == 41
    assert objective.work.values == 0


def test_mini_batches_train_too() -> None:
    objective = digits()
    state, reports = run(PLAIN, objective, 24, batches=mini_batches(objective))
    assert objective.value(state["parameters"], FULL) < 0.1 * reports[0].loss  # type: ignore[arg-type]
    assert objective.work.gradients == 24


def test_curvature_of_both_signs_does_no_harm() -> None:
    _, reports = run(PLAIN, RosenbrockObjective(4), 200)
    losses = [report.loss for report in reports]
    assert all(after <= before for before, after in pairwise(losses))


@pytest.mark.parametrize("mini", [False, True])
def test_lambda_on_full_batches_follows_the_ratio_and_on_mini_batches_the_next_one(mini: bool) -> None:
    objective = digits(torch.float64)
    batches = mini_batches(objective) if mini else [FULL]
    state, before = PLAIN.init(objective), PLAIN.damping
    for number in range(16):
        batch, previous = batches[number % len(batches)], state["previous"].clone()  # type: ignore[union-attr]
        w, promised, expected = state["parameters"].clone(), float(state["promised"]), before  # type: ignore[union-attr]
        if mini and number:
            gained = objective.value(w - previous, batch) - objective.value(w, batch)
            expected *= 2 / 3 if gained > 0.5 * promised else 1.5 if gained < -0.5 * promised else 1.0
        state, report = PLAIN.step(objective, state, batch)
        assert report.inner_iterations == 1
        expected *= 2.25 if report.rho < 0.25 else 2 / 3 if report.rho > 0.75 and not mini else 1.0
        assert report.damping == state["damping"] == pytest.approx(expected)
        before = report.damping


@pytest.mark.parametrize(("least", "size"), [(1, 90), (200, 150), (1000, 450)])
def test_the_curvature_is_that_of_a_part_of_the_batch_another_one_in_every_step(least: int, size: int) -> None:
    objective, seen = digits(), []
    linearize = objective.linearize

    def noted(w: Vector, batch: Batch) -> Any:
        seen.append(batch.indices)
        return linearize(w, batch)

    objective.linearize = noted  # type: ignore[method-assign]
    run(NLCG(preconditioner="identity", subset_least=least), objective, 4, batches=mini_batches(objective)[:1])
    assert all(len(indices) in (size, size + 1) for indices in seen)  # parts of a cycle differ by one at most
    assert torch.equal(seen[0], seen[1]) == (size == 450)


def flattering() -> FunctionObjective:
    """The function |w|^2 / 2, whose model takes a part of the curvature, so that its steps are much too long."""
    objective = FunctionObjective(lambda w, _: 0.5 * w.square().sum(), torch.ones(2, dtype=torch.float64))
    linearize = objective.linearize

    def flattened(w: Vector, batch: Batch) -> Any:
        linear = linearize(w, batch)
        curvatures = linear.curvatures
        linear.curvatures = lambda directions: 0.1 * curvatures(directions)  # type: ignore[method-assign]
        return linear

    objective.linearize = flattened  # type: ignore[method-assign]
    return objective


def test_a_step_after_which_the_loss_rises_is_tried_again_with_more_damping() -> None:
    objective = flattering()
    _, (report,) = run(NLCG(preconditioner="identity", damping=0.3), objective, 1)
    assert report.inner_iterations == 2  # the step is 1 / (0.1 + lambda): 2.5, then 0.77
    assert report.accepted
    assert report.step_size == pytest.approx(1 / 1.3)
    assert objective.work.gradients == 2  # at the start, and with the first trial
    assert objective.work.values == 1


def test_a_rejected_step_leaves_the_point_and_forgets_the_last_direction() -> None:
    objective = flattering()
    state = PLAIN.init(objective)
    state |= {"has_previous": True, "previous": torch.tensor([1.0, -1.0], dtype=torch.float64), "promised": 1.0}
    w = state["parameters"].clone()  # type: ignore[union-attr]
    state, report = PLAIN.step(objective, state, FULL)
    assert not report.accepted
    assert report.step_norm == 0
    assert report.damping == pytest.approx(0.64)
    assert torch.equal(state["parameters"], w)  # type: ignore[arg-type]
    assert not state["has_previous"]
    _, report = PLAIN.step(objective, state, FULL)
    assert report.accepted


def test_a_full_batch_on_which_nothing_helps_ends_the_run() -> None:
    start = torch.ones(2, dtype=torch.float64)
    objective = FunctionObjective(lambda w, _: (2 * w.detach() - w).square().sum(), start)  # ascends along -g
    _, reports = run(PLAIN, objective, 20)
    assert len(reports) == FAILURES
    assert reports[-1].stop is StopReason.LINE_SEARCH_FAILED


def test_a_stationary_point_ends_the_run() -> None:
    objective = FunctionObjective(lambda w, _: (w * 0).sum(), torch.zeros(3))
    _, reports = run(PLAIN, objective, 3)
    assert [report.stop for report in reports] == [StopReason.GRADIENT_SMALL]


@pytest.mark.parametrize("mini", [False, True])
def test_the_state_is_complete(mini: bool) -> None:
    objective = digits()
    assert_state_is_complete(PLAIN, objective, 5, mini_batches(objective) if mini else None)


@pytest.mark.parametrize("where", ["loss", "gradient", "both"])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_numbers_that_are_not_finite_never_reach_the_parameters(at: int, where: str) -> None:
    assert_survives_fault(PLAIN, QuadraticObjective(6, 10.0), at, where)


def test_a_start_that_is_not_finite_is_rejected() -> None:
    faulty = FaultyObjective(QuadraticObjective(6, 10.0), 0)
    _, report = PLAIN.step(faulty, PLAIN.init(faulty), FULL)  # type: ignore[arg-type]
    assert not report.finite
    assert not report.accepted
    assert math.isnan(report.loss)


def test_on_mini_batches_the_mean_of_the_iterates_is_kept() -> None:
    objective = digits(torch.float64)
    state, _ = run(PLAIN, objective, 12, batches=mini_batches(objective))
    assert not torch.equal(state["average"], state["parameters"])  # type: ignore[arg-type]
    assert objective.value(state["average"], FULL) < 0.5  # type: ignore[arg-type]
    assert "average" not in NLCG(preconditioner="identity", average=0.0).init(objective)
    state, _ = run(PLAIN, objective, 2)
    assert torch.equal(state["average"], state["parameters"])  # type: ignore[arg-type]


class Pairs(Identity):
    """Keeps what it is told."""

    wants_pairs = True
    seen: list[tuple[Vector, Vector]]

    def observe(self, objective: Objective, state: State, step: Vector, change: Vector) -> None:
        self.seen.append((step.clone(), change.clone()))


@pytest.mark.parametrize("mini", [False, True])
def test_a_preconditioner_that_wants_pairs_gets_those_of_one_batch(mini: bool) -> None:
    objective = digits(torch.float64)
    batches = mini_batches(objective)[:1] if mini else [FULL]
    pairs = Pairs()
    object.__setattr__(pairs, "seen", [])
    rule = PlaneSearch(PLAIN, pairs)
    state = rule.init(objective)
    for number in range(3):
        w = state["parameters"].clone()  # type: ignore[union-attr]
        _, before = objective.value_and_gradient(w, batches[0])
        state, report = rule.step(objective, state, batches[0])
        assert report.accepted
        step, change = pairs.seen[number]
        torch.testing.assert_close(step, state["parameters"] - w)
        _, after = objective.value_and_gradient(state["parameters"], batches[0])  # type: ignore[arg-type]
        torch.testing.assert_close(change, after - before, rtol=1e-9, atol=1e-12)


def test_bad_options_are_refused() -> None:
    with pytest.raises(UsageError, match="preconditioner = 'identiti'"):
        NLCG(preconditioner="identiti")
    with pytest.raises(UsageError, match=r"next_decrease_above = -1"):
        NLCG(next_decrease_above=-1.0)
    with pytest.raises(UsageError, match="step_rule"):
        NLCG(step_rule="strong")
