"""Layer-wise rates against a plain loop over the layers."""

import pytest
import torch

from hpcopt.errors import UsageError
from hpcopt.solvers.lars import LARS
from hpcopt.solvers.registry import make_solver
from tests.support.checks import assert_state_is_complete, assert_survives_fault, run
from tests.support.objectives import FULL, FunctionObjective, MlpObjective, QuadraticObjective


def mlp(dtype=torch.float64, samples=40):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, 6, generator=generator, dtype=torch.float64).to(dtype)
    return MlpObjective(inputs, (inputs[:, :3].argmax(1)), hidden=8, classes=3)


def by_layers(objective, steps, rate, momentum, trust, decay):
    w = objective.initial_vector()
    velocity = torch.zeros_like(w)
    for _ in range(steps):
        _, gradient = objective.value_and_gradient(w, FULL)
        for part, shape in zip(objective.slices, objective.shapes, strict=True):
            g, ratio = gradient[part], 1.0
            size, slope = torch.linalg.vector_norm(w[part]), torch.linalg.vector_norm(g)
            if len(shape) > 1 and size > 0 and slope > 0:
                ratio = trust * size / (slope + decay * size)
                g = g + decay * w[part]
            velocity[part] = momentum * velocity[part] + rate * ratio * g
        w = w - velocity
    return w


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_ten_steps_equal_the_formula_layer_by_layer(decay):
    state, _ = run(LARS(learning_rate=0.5, trust=0.02, weight_decay=decay), mlp(), 10)
    expected = by_layers(mlp(), 10, 0.5, 0.9, 0.02, decay)
    torch.testing.assert_close(state["parameters"], expected, rtol=1e-11, atol=1e-14)


def test_a_layer_without_weights_or_gradient_takes_the_ratio_one():
    objective = FunctionObjective(lambda w, _: w[:2].sum(), torch.tensor([0.0, 0.0, 1.0]), [slice(0, 2), slice(2, 3)])
    state, _ = run(LARS(learning_rate=0.5), objective, 1)
    assert state["parameters"].tolist() == [-0.5, -0.5, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_is_trained(dtype):
    objective = mlp(dtype)
    solver = LARS(trust=0.02, schedule="quadratic", decay_epochs=1.0)
    state, reports = run(solver, objective, 200, positions=torch.linspace(0, 1, 200).tolist())
    assert objective.value(state["parameters"], FULL) < 0.2 * reports[0].loss


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("at", [0, 5])
def test_a_nan_is_a_rejected_step(at, where):
    assert_survives_fault(LARS(trust=0.02), QuadraticObjective(), at, where)


def test_the_state_is_complete():
    assert_state_is_complete(LARS(trust=0.02), mlp())


def test_the_paper_preset_has_the_papers_decay():
    assert make_solver("lars", {"preset": "paper"}).weight_decay == 5e-4


@pytest.mark.parametrize("options", [{"trust": 0}, {"momentum": 1}, {"weight_decay": -1}])
def test_wrong_options_are_refused(options):
    with pytest.raises(UsageError, match="must be a number"):
        LARS(**options)
