"""Gradient descent with momentum against torch.optim.SGD, and its manners."""

import pytest
import torch

from hpcopt.errors import UsageError
from hpcopt.solvers.sgd import SGD
from tests.support.checks import assert_state_is_complete, assert_survives_fault, run, torch_reference
from tests.support.objectives import FULL, FaultyObjective, QuadraticObjective, RosenbrockObjective

VARIANTS = [{}, {"momentum": 0.9}, {"momentum": 0.8, "nesterov": True}]


@pytest.mark.parametrize("options", VARIANTS)
def test_twenty_steps_equal_torch(options):
    objective = RosenbrockObjective(4)
    state, _ = run(SGD(learning_rate=1e-4, **options), objective, 20)
    expected = torch_reference(torch.optim.SGD, objective, 20, lr=1e-4, **options)
    torch.testing.assert_close(state["parameters"], expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", VARIANTS)
def test_a_quadratic_is_minimised(options, dtype):
    state, reports = run(SGD(learning_rate=0.02, **options), QuadraticObjective(8, 50.0, dtype), 900)
    torch.testing.assert_close(state["parameters"], torch.ones(8, dtype=dtype), rtol=1e-4, atol=1e-4)
    assert state["parameters"].dtype == dtype
    assert reports[0].gradient_norm > 1 > reports[-1].gradient_norm


@pytest.mark.parametrize("where", ["loss", "gradient", "both"])
@pytest.mark.parametrize("at", [0, 5])
@pytest.mark.parametrize("options", VARIANTS)
def test_a_nan_is_a_rejected_step(options, at, where):
    assert_survives_fault(SGD(learning_rate=0.002, **options), QuadraticObjective(8, 50.0), at, where, steps=40)


def test_an_infinite_gradient_leaves_the_velocity_untouched():
    objective = FaultyObjective(QuadraticObjective(), 1, "gradient", float("inf"))
    solver = SGD(learning_rate=1e-3, momentum=0.9)
    state, _ = solver.step(objective, solver.init(objective), FULL)
    velocity = state["velocity"].clone()
    state, report = solver.step(objective, state, FULL)
    assert objective.injected == 1
    assert not report.accepted
    assert torch.equal(state["velocity"], velocity)


@pytest.mark.parametrize("options", VARIANTS)
def test_the_state_is_complete(options):
    assert_state_is_complete(SGD(learning_rate=1e-4, **options), RosenbrockObjective(4))


def test_the_report_has_the_rate_and_the_length_of_the_step():
    objective = QuadraticObjective()
    before = objective.initial_vector()
    state, (report,) = run(SGD(learning_rate=1e-3), objective, 1)
    assert report.step_size == 1e-3
    assert report.step_norm == pytest.approx(float(torch.linalg.vector_norm(state["parameters"] - before)))


@pytest.mark.parametrize(
    ("options", "words"), [({"momentum": 1.0}, "below 1"), ({"nesterov": True}, "no effect with momentum")]
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        SGD(**options)
