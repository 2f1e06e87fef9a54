"""The Gauss-Newton method: its promises on small problems whose answer is known."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.solvers.newton import Newton
from hpcopt.solvers.registry import make_solver
from hpcopt.solvers.solver import StopReason
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
from tests.support.problems import sharded

EXACT = Newton(subset=1.0, damping=1e-8, cg_tolerance=1e-13, preconditioner="none")
"""A system without noticeable damping, solved to rounding."""


def test_convex_least_squares_is_solved_in_one_step(comm: Communicator) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    targets = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    objective = DataParallelObjective(torch.nn.Linear(4, 2).double(), "squared", inputs, targets, comm)
    state, report = EXACT.step(objective, EXACT.init(objective), objective.full_batch)
    columns = torch.cat([inputs, torch.ones(30, 1, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(columns, targets).solution
    expected = torch.cat([solution[:-1].T.reshape(-1), solution[-1]])
    torch.testing.assert_close(state["parameters"], expected, rtol=1e-6, atol=1e-7)
    assert report.step_size == 1.0
    assert report.rho == pytest.approx(1.0, abs=1e-6)
    assert report.loss - report.loss_after == pytest.approx(report.predicted, rel=1e-6)


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 1e-3), (torch.float64, 1e-6)])
def test_an_ill_conditioned_quadratic_is_minimised(dtype: torch.dtype, accuracy: float) -> None:
    state, _ = run(Newton(), QuadraticObjective(10, 1e4, dtype), 60)
    torch.testing.assert_close(state["parameters"], torch.ones(10, dtype=dtype), rtol=0, atol=accuracy)


def test_curvature_of_both_signs_does_no_harm() -> None:
    _, reports = run(Newton(), RosenbrockObjective(4), 200)
    losses = [report.loss for report in reports]
    assert all(after <= before for before, after in pairwise(losses))
    assert losses[-1] < 1e-8


def test_a_network_is_trained_on_the_full_batch_and_the_loss_never_rises() -> None:
    _, reports = run(Newton(), digits(), 30)
    losses = [report.loss for report in reports]
    assert all(after <= before for before, after in pairwise(losses))
    assert losses[-1] < 1e-3


def test_mini_batches_train_too() -> None:
    objective = digits()
    state, reports = run(Newton(subset=0.25, subset_least=1), objective, 30, batches=mini_batches(objective))
    assert objective.value(state["parameters"], FULL) < 0.1 * reports[0].loss


def test_the_report_says_what_happened() -> None:
    objective = digits(torch.float64)
    solver = Newton(cg_iterations=7, cg_tolerance=0.0)
    state, reports = run(solver, objective, 4)
    assert [report.inner_iterations for report in reports] == [7] * 4
    for report in reports:
        assert report.rho == pytest.approx((report.loss - report.loss_after) / report.predicted, rel=1e-9)
        assert report.step_size in [0.5**k for k in range(26)]
        assert report.accepted
        assert report.step_norm > 0
        assert math.isnan(report.radius)
    assert reports[-1].damping == state["damping"]


def test_the_damping_follows_the_ratio() -> None:
    _, reports = run(Newton(), digits(), 20)
    before = 1.0
    for report in reports:
        factor = 2 / 3 if report.rho > 0.75 else 1.5 if report.rho < 0.25 else 1.0
        assert report.damping == pytest.approx(before * factor)
        before = report.damping
    assert len({report.damping for report in reports}) > 3


def test_the_model_is_that_of_the_subset_and_of_the_gradient_of_all(comm: Communicator) -> None:
    """g^T d + 1/2 d^T G d with the G of the first subset, without lambda."""
    objective = sharded(comm, weight_decay=0.01)
    plain = {"preconditioner": "none", "cg_tolerance": 1e-3}
    solver = Newton(subset=0.3, subset_least=1, combine=False, damping=5.0, **plain)
    state = solver.init(objective)
    w, batch = state["parameters"].clone(), objective.full_batch
    _, gradient = objective.value_and_gradient(w, batch)
    state, report = solver.step(objective, state, batch)
    step = state["parameters"] - w
    linear = objective.linearize(w, objective.subset(batch, round(0.3 * batch.total), 0))
    model = objective.dot(gradient, step) + 0.5 * objective.dot(step, linear.gauss_newton(step))
    assert report.predicted == pytest.approx(-model, rel=1e-9)
    residual = linear.gauss_newton(step).add_(step, alpha=5.0).add_(gradient)
    assert residual.norm() <= 1.01e-3 * gradient.norm()


def subsets_of(solver: Newton, steps: int) -> list[torch.Tensor]:
    """What the curvature of each step on the same 450 samples is of."""
    objective, seen = digits(), []
    linearize = objective.linearize

    def noted(w, batch):  # type: ignore[no-untyped-def]
        seen.append(batch.indices)
        return linearize(w, batch)

    objective.linearize = noted  # type: ignore[method-assign]
    run(solver, objective, steps, batches=mini_batches(objective)[:1])
    return seen


def test_every_step_has_a_subset_of_its_own() -> None:
    seen = subsets_of(Newton(subset=0.26, subset_least=1, cg_iterations=2), 4)
    assert sorted(torch.cat(seen).tolist()) == list(range(0, 1797, 4))


@pytest.mark.parametrize(("least", "size"), [(1, 45), (200, 150), (1000, 450)])
def test_a_subset_has_so_many_samples_at_least_as_far_as_the_batch_has_them(least: int, size: int) -> None:
    (seen,) = subsets_of(Newton(subset=0.1, subset_least=least, cg_iterations=2), 1)
    assert len(seen) == size


def test_the_combination_promises_at_least_as_much_as_the_new_direction_alone() -> None:
    objective = digits(torch.float64)
    state, _ = run(Newton(), objective, 4)
    alone = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in state.items()}
    alone["has_previous"] = False
    _, both = Newton().step(objective, state, FULL)
    _, one = Newton().step(objective, alone, FULL)
    assert both.step_size == one.step_size == 1.0
    assert both.predicted >= one.predicted > 0


def test_the_first_step_is_the_exact_one_along_its_direction() -> None:
    """Without a previous direction the combination still has a length to choose: 1 / (1 + lambda) is undone."""
    objective = FunctionObjective(lambda w, _: 0.5 * (w - 1).square().sum(), torch.zeros(3, dtype=torch.float64))
    state, _ = run(Newton(), objective, 1)
    torch.testing.assert_close(state["parameters"], torch.ones(3, dtype=torch.float64))
    state, _ = run(Newton(combine=False), objective, 1)
    torch.testing.assert_close(state["parameters"], torch.full((3,), 0.5, dtype=torch.float64))


def test_the_gradient_at_the_end_is_the_next_start_on_a_full_batch() -> None:
    objective = digits()
    _, reports = run(Newton(), objective, 10)
    halved = sum(report.step_size < 1 for report in reports)
    assert objective.work.gradients == 1 + len(reports) + halved - (reports[-1].step_size < 1)


@pytest.mark.parametrize("where", ["loss", "gradient", "both"])
@pytest.mark.parametrize("at", [0, 1, 5])
def test_a_nan_never_reaches_the_parameters(at: int, where: str) -> None:
    assert_survives_fault(Newton(), QuadraticObjective(), at, where)


@pytest.mark.parametrize("at", [1, 4])
def test_a_product_that_is_not_finite_is_a_rejected_step(at: int) -> None:
    objective, solver = QuadraticObjective(), Newton()
    linearize, products = objective.linearize, 0

    def faulty(w, batch):  # type: ignore[no-untyped-def]
        linear = linearize(w, batch)
        product = linear.gauss_newton

        def gauss_newton(v):  # type: ignore[no-untyped-def]
            nonlocal products
            products += 1
            return product(v) * (math.nan if products == at else 1.0)

        linear.gauss_newton = gauss_newton
        return linear

    objective.linearize = faulty  # type: ignore[method-assign]
    state, report = solver.step(objective, solver.init(objective), FULL)
    assert products == at
    assert not report.accepted
    assert not report.finite
    assert torch.equal(state["parameters"], objective.start)
    assert report.damping == pytest.approx(2.25)
    state, report = solver.step(objective, state, FULL)
    assert report.accepted


@pytest.mark.parametrize("kind", ["full", "mini"])
def test_the_state_is_complete(kind: str) -> None:
    objective = digits()
    batches = mini_batches(objective) if kind == "mini" else None
    assert_state_is_complete(Newton(subset=0.25, subset_least=100, cg_iterations=10), objective, 6, batches)


class Uphill(QuadraticObjective):
    """The gradient points downhill, so that every direction of descent it suggests is one of ascent."""

    def value_and_gradient(self, w, batch):  # type: ignore[no-untyped-def]
        loss, gradient = super().value_and_gradient(w, batch)
        return loss, -gradient


def test_a_failed_line_search_moves_nothing_and_raises_lambda() -> None:
    objective = Uphill()
    state, reports = run(Newton(backtracks=3), objective, 2)
    assert torch.equal(state["parameters"], objective.start)
    assert [report.accepted for report in reports] == [False, False]
    assert [report.damping for report in reports] == pytest.approx([2.25, 2.25**2])
    assert state["subsets"] == 2
    assert objective.work.gradients == 1 + 2, "the gradient at the point is still known"


def test_failed_line_searches_in_a_row_end_a_full_batch_run() -> None:
    _, reports = run(Newton(), Uphill(), 20)
    assert len(reports) == FAILURES
    assert reports[-1].stop is StopReason.LINE_SEARCH_FAILED


def test_failed_line_searches_on_mini_batches_end_nothing() -> None:
    objective = digits()
    value_and_gradient = objective.value_and_gradient

    def uphill(w, batch):  # type: ignore[no-untyped-def]
        loss, gradient = value_and_gradient(w, batch)
        return loss, -gradient

    objective.value_and_gradient = uphill  # type: ignore[method-assign]
    _, reports = run(Newton(backtracks=2, cg_iterations=2), objective, 8, batches=mini_batches(objective))
    assert len(reports) == 8
    assert not any(report.accepted for report in reports)


def test_a_zero_gradient_is_a_good_end() -> None:
    _, reports = run(Newton(), FunctionObjective(lambda w, _: (w - 1).square().sum(), torch.ones(3)), 5)
    assert [report.stop for report in reports] == [StopReason.GRADIENT_SMALL]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_minimum_found_to_rounding_is_a_good_end(dtype: torch.dtype) -> None:
    objective = FunctionObjective(
        lambda w, _: 1 + (w - 0.3).pow(4).sum() + (w - 0.3).square().sum(), torch.ones(3, dtype=dtype)
    )
    _, reports = run(Newton(), objective, 100)
    assert reports[-1].stop is StopReason.GRADIENT_SMALL


def test_a_nan_within_the_line_search_only_shortens_the_step() -> None:
    objective = FaultyObjective(digits(), 1)
    _, (report,) = run(Newton(), objective, 1)  # type: ignore[arg-type]
    assert objective.injected == 1
    assert report.accepted
    assert report.step_size < 1
    assert not report.finite


def test_the_combination_is_decisive(comm: Communicator) -> None:
    """A small version of what the paper's follow-up shows: as many steps, less work, a lower loss."""
    losses, work = {}, {}
    for combine in (True, False):
        objective = digits()
        _, reports = run(Newton(combine=combine, subset=1.0, cg_tolerance=1e-2), objective, 15)
        losses[combine], work[combine] = reports[-1].loss_after, sum(report.inner_iterations for report in reports)
    assert losses[True] < 0.5 * losses[False]
    assert work[True] < work[False]


def test_the_paper_has_a_preset() -> None:
    solver = make_solver("newton", {"preset": "paper", "damping": 2.0})
    assert (solver.cg_iterations, solver.cg_tolerance, solver.damping) == (250, 1e-3, 2.0)  # type: ignore[attr-defined]
    assert solver.preconditioner == "none"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"subset": 0.0}, "above 0 and at most 1"),
        ({"subset": 1.5}, "above 0 and at most 1"),
        ({"subset_least": 0}, "whole number"),
        ({"damping": 0.0}, "at least 1e-08 and at most 1e"),
        ({"damping_increase": 0.9}, "at least 1"),
        ({"damping_decrease": 1.5}, "above 0 and at most 1"),
        ({"cg_tolerance": 1.0}, "of at least 0 and below 1"),
        ({"cg_iterations": 0}, "whole number"),
        ({"combine": 1}, "true or false"),
        ({"preconditioner": "kroneker"}, "must be"),
        ({"preconditioner": "kronecker", "direction": "block"}, "no effect"),
        ({"preconditioned_iterations": 0}, "whole number"),
        ({"factor_damping": 0.0}, "at least 1e-08"),
        ({"armijo": 0.6}, "at most 0.5"),
        ({"backtracks": -1}, "whole number"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Newton(**options)  # type: ignore[arg-type]
