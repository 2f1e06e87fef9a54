"""The objective made of a closure is one like any other: a solver finds in it what the protocol says."""

import pytest
import torch

from hpcopt.errors import UsageError
from hpcopt.objective.protocol import Batch
from hpcopt.optim.closure import ClosureEvaluation
from hpcopt.optim.closure_objective import ClosureObjective
from hpcopt.optim.tensors import ParameterTensors
from hpcopt.solvers.adam import Adam
from tests.support.problems import samples, sharded, small_network

BATCH = Batch(None, 37, 37)


@pytest.fixture
def objective(comm):
    model, (inputs, targets) = small_network(), samples()
    evaluation = ClosureEvaluation(ParameterTensors(list(model.parameters())))

    def closure():
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    evaluation.begin(closure)
    return ClosureObjective(evaluation, comm, 0.01)


def test_values_and_gradients_are_those_of_the_samples(comm, objective):
    expected = sharded(comm, weight_decay=0.01)
    w = expected.initial_vector() + 0.1
    loss, gradient = objective.value_and_gradient(w, BATCH)
    assert loss == pytest.approx(expected.value(w, BATCH), rel=1e-14)
    assert objective.value(w, BATCH) == loss
    torch.testing.assert_close(gradient, expected.value_and_gradient(w, BATCH)[1], rtol=1e-13, atol=1e-15)
    for own_loss, own in (objective.value_and_gradients(w, BATCH)[2:], objective.local.value_and_gradient(w, BATCH)):
        assert own_loss == pytest.approx(loss, rel=1e-15)
        torch.testing.assert_close(own, gradient, rtol=1e-15, atol=1e-15)


def test_work_is_counted_in_evaluations_of_the_batch(objective):
    w = objective.initial_vector()
    objective.value(w, BATCH)
    objective.value_and_gradient(w, BATCH)
    objective.local.value_and_gradient(w, BATCH)
    assert (objective.work.values, objective.work.gradients) == (1, 1)
    objective.combine(w, ())
    assert (objective.work.values, objective.work.gradients) == (1, 2)


def test_the_tensors_lie_where_the_model_has_them(comm, objective):
    assert objective.parameter_tensors() == sharded(comm).parameter_tensors()
    assert torch.equal(objective.initial_vector(), sharded(comm).initial_vector())


def test_other_methods_find_what_they_need(objective):
    solver = Adam(learning_rate=0.05)
    state = solver.init(objective)
    losses = []
    for _ in range(10):
        state, report = solver.step(objective, state, BATCH)
        losses.append(report.loss)
    assert losses[-1] < 0.9 * losses[0]


def test_a_closure_has_no_jacobian(objective):
    with pytest.raises(UsageError, match=r"use hpcopt\.DataParallelObjective"):
        objective.linearize(objective.initial_vector(), BATCH)
