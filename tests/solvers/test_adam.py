"""Adam and AdamW against torch, and their manners."""

import pytest
import torch

from hpcopt.errors import UsageError
from hpcopt.solvers.adam import Adam
from tests.support.checks import assert_state_is_complete, assert_survives_fault, run, torch_reference
from tests.support.objectives import QuadraticObjective, RosenbrockObjective


def test_twenty_steps_equal_torch_adam():
    objective = RosenbrockObjective(4)
    state, _ = run(Adam(learning_rate=0.01, betas=(0.8, 0.99), epsilon=1e-6), objective, 20)
    expected = torch_reference(torch.optim.Adam, objective, 20, lr=0.01, betas=(0.8, 0.99), eps=1e-6)
    torch.testing.assert_close(state["parameters"], expected, rtol=1e-12, atol=0)


def test_twenty_steps_with_decoupled_decay_equal_torch_adamw():
    objective = RosenbrockObjective(4)
    state, _ = run(Adam(learning_rate=0.01, decoupled_weight_decay=0.3), objective, 20)
    expected = torch_reference(torch.optim.AdamW, objective, 20, lr=0.01, weight_decay=0.3)
    torch.testing.assert_close(state["parameters"], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_quadratic_is_minimised(dtype):
    solver = Adam(learning_rate=0.3, schedule="cosine", decay_epochs=1.0)
    objective = QuadraticObjective(8, 50.0, dtype)
    state, _ = run(solver, objective, 300, positions=torch.linspace(0, 1, 300).tolist())
    torch.testing.assert_close(state["parameters"], torch.ones(8, dtype=dtype), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("at", [0, 5])
def test_a_nan_is_a_rejected_step(at, where):
    assert_survives_fault(Adam(learning_rate=0.05), QuadraticObjective(), at, where)


def test_the_state_is_complete():
    assert_state_is_complete(Adam(learning_rate=0.01), RosenbrockObjective(4))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"betas": (0.9, 1.0)}, "two numbers from 0 to below 1"),
        ({"betas": 0.9}, "two numbers"),
        ({"epsilon": 0}, "epsilon = 0 must be a number above 0"),
        ({"decoupled_weight_decay": -1}, "at least 0"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        Adam(**options)
