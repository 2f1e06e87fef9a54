"""slimTrain against its own formulas written out densely, and its manners."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Batch
from hpcopt.solvers.adam import Adam
from hpcopt.solvers.lars import LARS
from hpcopt.solvers.sgd import SGD
from hpcopt.solvers.slimtrain import SlimTrain, theta_solver
from hpcopt.solvers.solver import State, StepReport
from tests.support.checks import assert_state_is_complete
from tests.support.last_layers import KINDS, data, network
from tests.support.problems import CLASSES, samples, sharded, small_network

BATCHES = [Batch(torch.arange(first, first + 12), 12, 12, (0, first)) for first in (0, 12, 24)]
WIDTH = 8
"""Inputs of the last layer, with that of the bias."""


def run(solver: SlimTrain, objective: DataParallelObjective, steps: int = 3) -> tuple[State, list[StepReport]]:
    state, reports = solver.init(objective), []
    for number in range(steps):
        state, report = solver.step(objective, state, BATCHES[number % 3])
        reports.append(report)
    return state, reports


def dense(lambdas: list[float], memory: int, rate: float, start: float) -> torch.nn.Sequential:
    """The method in a page of torch: normal equations, torch's Adam on the layers before the last one."""
    model, (inputs, targets) = small_network(), samples("squared")
    optimizer = torch.optim.Adam(model[:-1].parameters(), lr=rate)
    kept: list[torch.Tensor] = []
    total = start
    for number, lam in enumerate(lambdas):
        chosen = BATCHES[number % 3].indices
        last, features = model[-1], model[:-1](inputs[chosen])
        z = torch.cat([features.detach(), torch.ones(12, 1, dtype=torch.float64)], dim=1).T / 12**0.5
        w = torch.cat([last.weight, last.bias[:, None]], dim=1).detach()
        residual = w @ z - targets[chosen].T / 12**0.5
        kept, total = [*kept, z][-memory - 1 :], total + lam
        system = sum(z @ z.T for z in kept) + total * torch.eye(WIDTH, dtype=torch.float64)  # type: ignore[operator]
        w = w - torch.linalg.solve(system, (residual @ z.T + lam * w).T).T
        with torch.no_grad():
            last.weight.copy_(w[:, :-1])
            last.bias.copy_(w[:, -1])
        optimizer.zero_grad()
        (last(features) - targets[chosen]).square().sum().div(24).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("form", ["gram", "tsqr"])
@pytest.mark.parametrize("memory", [0, 2])
def test_steps_are_those_of_normal_equations_and_of_torch_adam(comm: Communicator, form: str, memory: int) -> None:
    given = {"selection": "fixed", "lambda_start": 0.3, "learning_rate": 0.05, "deliver": "iterate"}
    state, _ = run(SlimTrain(memory=memory, form=form, **given), sharded(comm, "squared"), 5)
    expected = dense([0.3] * 5, memory, 0.05, 0.3)
    theirs = torch.cat([p.detach().flatten() for p in expected.parameters()])
    torch.testing.assert_close(state["parameters"], theirs, rtol=1e-10, atol=1e-12)
    assert state["damping"] == pytest.approx(6 * 0.3)
    assert state[f"by_{form}"] == 5


@pytest.mark.parametrize("options", [{}, {"negative": False}, {"selection": "discrepancy", "lambda_start": 1.0}])
def test_lambda_stays_above_its_bound_and_the_loss_falls(comm: Communicator, options: dict[str, Any]) -> None:
    state, reports = run(SlimTrain(memory=2, learning_rate=0.01, **options), sharded(comm, "squared"), 30)
    dampings = [report.damping for report in reports]
    assert min(dampings) >= 1e-7
    assert len(set(dampings)) > 5
    assert reports[-1].loss < reports[0].loss
    assert state["solved"] == 30


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["gram", "tsqr"])
def test_a_bias_that_is_not_regularized_is_the_best_one_whatever_lambda(
    comm: Communicator, kind: str, form: str
) -> None:
    objective = DataParallelObjective(network(kind), "squared", *data(kind), comm)
    still = {"theta_solver": "sgd", "learning_rate": 1e-12, "deliver": "iterate", "form": form}
    solver = SlimTrain(selection="fixed", lambda_start=1e3, regularize_bias=False, **still)
    state, _ = solver.step(objective, solver.init(objective), objective.full_batch)
    _, gradient = objective.value_and_gradient(state["parameters"], objective.full_batch)  # type: ignore[arg-type]
    left = objective.separable.weights(gradient).abs()
    assert float(left[:, -1].max()) < 1e-9
    assert float(left[:, :-1].max()) > 1e-3


def test_lambda_grows_by_half_of_itself_at_most(comm: Communicator) -> None:
    _, reports = run(SlimTrain(lambda_start=0.5), sharded(comm, "squared"), 6)
    dampings = [0.5, *(report.damping for report in reports)]
    assert all(0.49 < after / before < 1.51 for before, after in pairwise(dampings))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["gram", "tsqr"])
def test_one_step_on_all_samples_solves_the_last_layer(comm: Communicator, kind: str, form: str) -> None:
    """No memory and next to no lambda: no other weights of the last layer leave a smaller loss."""
    objective = DataParallelObjective(network(kind), "squared", *data(kind), comm)
    solver = SlimTrain(memory=0, selection="fixed", lambda_start=1e-12, deliver="iterate", theta_solver="sgd")
    solver = replace(solver, learning_rate=1e-12, form=form)
    state, _ = solver.step(objective, solver.init(objective), objective.full_batch)
    _, gradient = objective.value_and_gradient(state["parameters"], objective.full_batch)  # type: ignore[arg-type]
    own = objective.separable.outputs * objective.separable.width
    assert float(gradient[-own:].abs().max()) < 1e-9
    assert float(gradient.abs().max()) > 1e-3


@pytest.mark.parametrize("micro_batch", [None, 5])
def test_a_model_that_is_its_last_layer_alone_is_solved_for(comm: Communicator, micro_batch: int | None) -> None:
    inputs, targets = samples("squared")
    layer = torch.nn.Linear(inputs.shape[1], targets.shape[1], dtype=torch.float64)
    objective = DataParallelObjective(layer, "squared", inputs, targets, comm, micro_batch=micro_batch)
    solver = SlimTrain(memory=0, selection="fixed", lambda_start=1e-12, deliver="iterate")
    state, _ = solver.step(objective, solver.init(objective), objective.full_batch)
    _, gradient = objective.value_and_gradient(state["parameters"], objective.full_batch)  # type: ignore[arg-type]
    assert float(gradient.abs().max()) < 1e-9


def test_the_loss_it_reports_is_that_at_the_start_of_the_step(comm: Communicator) -> None:
    objective = sharded(comm, "squared", weight_decay=0.1)
    solver = SlimTrain()
    state = solver.init(objective)
    expected = objective.value(state["parameters"], BATCHES[0])  # type: ignore[arg-type]
    _, report = solver.step(objective, state, BATCHES[0])
    assert report.loss == pytest.approx(expected, rel=1e-12)


def test_weight_decay_moves_the_other_variables_only(comm: Communicator) -> None:
    options = {"learning_rate": 1.0, "theta_solver": "sgd", "deliver": "iterate"}
    free, decayed = (run(SlimTrain(**options), sharded(comm, "squared", weight_decay=d), 1)[0] for d in (0.0, 0.1))
    start, last = sharded(comm, "squared").initial_vector(), slice(-CLASSES * WIDTH, None)
    moved = free["parameters"] - decayed["parameters"]  # type: ignore[operator]
    torch.testing.assert_close(moved[: last.start], 0.1 * start[: last.start], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(moved[last], torch.zeros(CLASSES * WIDTH, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_a_batch_give_the_same_steps(comm: Communicator, kind: str) -> None:
    def steps(micro_batch: int | None) -> State:
        given = DataParallelObjective(network(kind), "squared", *data(kind), comm, micro_batch=micro_batch)
        return run(SlimTrain(), given)[0]

    whole, pieces = steps(None), steps(5)
    torch.testing.assert_close(pieces["parameters"], whole["parameters"], rtol=1e-8, atol=1e-10)


class Tracked(torch.autograd.Function):
    """The identity, which notes its forward and backward passes."""

    seen: ClassVar[list[str]] = []

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        Tracked.seen.append("forward")
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        Tracked.seen.append("backward")
        return gradient


def test_a_step_is_one_pass_forward_and_one_back_and_never_the_last_layer(comm: Communicator) -> None:
    """Of all layers before it; it is called once for each size of a batch, to see that it makes the outputs."""

    class Watched(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Tracked.seen.append("last")
            return super().forward(x)

    class Hidden(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Tracked.apply(super().forward(x).tanh())  # type: ignore[no-any-return, no-untyped-call]

    objective = sharded(comm, "squared", model=torch.nn.Sequential(Hidden(5, 7), Watched(7, CLASSES)).double())
    solver = SlimTrain(memory=1)
    state, _ = solver.step(objective, solver.init(objective), BATCHES[0])
    Tracked.seen.clear()
    for batch in BATCHES:
        state, _ = solver.step(objective, state, batch)
    assert Tracked.seen == ["forward", "backward"] * 3


def test_labels_stand_for_one_hot_vectors(comm: Communicator) -> None:
    inputs, labels = samples()
    vectors = torch.nn.functional.one_hot(labels, CLASSES).double()
    ours, theirs = (
        run(SlimTrain(), DataParallelObjective(small_network(), "squared", inputs, targets, comm))[0]
        for targets in (labels, vectors)
    )
    assert torch.equal(ours["parameters"], theirs["parameters"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{}, {"theta_solver": "sgd", "momentum": 0.9}, {"form": "tsqr", "deliver": "iterate"}]
)
def test_the_state_is_complete(comm: Communicator, options: dict[str, Any]) -> None:
    assert_state_is_complete(SlimTrain(memory=2, **options), sharded(comm, "squared"), 4, BATCHES)


@pytest.mark.parametrize("bad", ["inputs", "targets"])
def test_a_sample_that_is_not_finite_is_a_rejected_step(comm: Communicator, bad: str) -> None:
    objective, solver = sharded(comm, "squared"), SlimTrain()
    state, _ = run(solver, objective)
    before = copy.deepcopy(state)
    getattr(objective.shard, bad)[3] = torch.nan
    state, report = solver.step(objective, state, BATCHES[0])
    assert (report.accepted, report.finite) == (False, False)
    for key in ("parameters", "average", "damping", "first_moment", "window"):
        assert torch.equal(torch.as_tensor(state[key]), torch.as_tensor(before[key])), key
    _, report = solver.step(objective, state, BATCHES[1])
    assert report.accepted


class Nearly(torch.nn.Module):
    """Features of which one is another one but for 1e-9."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, 0], x[:, 0] + 1e-9 * x[:, 1]], dim=1) * self.scale


@pytest.mark.parametrize(("least", "form"), [(1e-7, "by_gram"), (1e-24, "by_tsqr")])
def test_triangles_are_kept_where_gram_matrices_would_lose_too_much(
    comm: Communicator, least: float, form: str
) -> None:
    inputs, targets = samples("squared")
    model = torch.nn.Sequential(Nearly(), torch.nn.Linear(2, CLASSES).double())
    objective = DataParallelObjective(model, "squared", inputs, targets, comm)
    state, _ = run(SlimTrain(lambda_min=least, memory=1), objective, 4)
    assert (state["by_tsqr"], state[form]) == ((1, 3) if form == "by_gram" else (4, 4))


def refused(comm: Communicator, model: torch.nn.Module, loss: str = "squared") -> str:
    objective = DataParallelObjective(model.double(), loss, *samples(loss), comm)
    with pytest.raises(UsageError) as caught:
        SlimTrain().init(objective)
    return str(caught.value)


def test_a_model_without_a_linear_end_is_refused(comm: Communicator) -> None:
    class Skips(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = torch.nn.Linear(5, CLASSES), torch.nn.Linear(5, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x) + self.last(x)

    linear = torch.nn.Linear(5, CLASSES)
    assert "does not make the outputs" in refused(comm, torch.nn.Sequential(linear, torch.nn.Tanh()))
    assert "does not make the outputs" in refused(comm, Skips())
    assert "is LayerNorm" in refused(comm, torch.nn.Sequential(linear, torch.nn.LayerNorm(CLASSES)))


def test_weights_that_are_shared_or_fixed_and_another_loss_are_refused(comm: Communicator) -> None:
    layers = [torch.nn.Linear(5, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3)]
    layers[2].weight = layers[4].weight
    assert "weight of the model's last layer is shared" in refused(comm, torch.nn.Sequential(*layers))
    model = small_network()
    model[2].weight.requires_grad_(False)
    assert "weight of the model's last layer does not require" in refused(comm, model)
    assert "squared loss only" in refused(comm, small_network(), "cross_entropy")


def test_the_methods_of_the_other_variables_get_their_options() -> None:
    adam = SlimTrain(learning_rate=0.2, betas=(0.5, 0.6), epsilon=1e-3, schedule="step", decay_epochs=2.0)
    assert theta_solver(adam, "adam") == Adam(
        learning_rate=0.2, betas=(0.5, 0.6), epsilon=1e-3, schedule="step", decay_epochs=2.0
    )
    sgd = SlimTrain(theta_solver="sgd", momentum=0.5, nesterov=True)
    assert theta_solver(sgd, "sgd", 0.5) == SGD(learning_rate=5e-4, momentum=0.5, nesterov=True, schedule="auto")
    lars = SlimTrain(theta_solver="lars", learning_rate=3.0, trust=0.01, schedule="constant")
    assert theta_solver(lars, "lars") == LARS(learning_rate=3.0, trust=0.01, momentum=0.9)


def test_the_other_variables_may_move_by_lars(comm: Communicator) -> None:
    """As it moves them where the last layer is held at what it was solved to be."""
    options = {"learning_rate": 2.0, "momentum": 0.5, "trust": 0.01}
    state, _ = run(SlimTrain(theta_solver="lars", deliver="iterate", **options), sharded(comm, "squared"), 1)
    objective, last = sharded(comm, "squared"), slice(-CLASSES * WIDTH, None)
    expected = LARS(**options).init(objective)
    expected["parameters"][last] = state["parameters"][last]  # type: ignore[index]
    expected, _ = LARS(**options).step(objective, expected, BATCHES[0])
    found = state["parameters"][: last.start]  # type: ignore[index]
    torch.testing.assert_close(found, expected["parameters"][: last.start], rtol=1e-10, atol=1e-12)  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory": -1}, "memory = -1 must be a whole number of at least 0"),
        ({"selection": "gvc"}, "did you mean"),
        ({"lambda_max": 1e-8}, "must be above lambda_min"),
        ({"form": "qr"}, "must be one of"),
        ({"theta_solver": "lbfgs"}, "must be one of 'adam', 'sgd', 'lars'"),
        ({"betas": 0.9}, "two numbers"),
        ({"rate_growth": 0.9}, "rate_growth"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        SlimTrain(**options)
