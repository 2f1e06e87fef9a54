"""hpcopt.optim.NLCG on one rank: what it does not share with Newton, whose tests hold for both."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.objective.protocol import Batch
from hpcopt.optim import NLCG
from hpcopt.solvers.registry import make_solver
from tests.support.closures import values_of
from tests.support.problems import samples, sharded, small_network

IDENTITY: dict[str, Any] = {"preconditioner": "identity"}
CONTROL: dict[str, Any] = {"preset": "paper", "warmup_epochs": 0.0, "schedule": "constant", "decay_epochs": None}
VARIANTS = [
    {},
    {"factor_samples": 20},
    IDENTITY,
    {"step_rule": "hager_zhang", "preconditioner": "diagonal_bfgs"},
    CONTROL,
]
IDS = ["kronecker", "fewer samples", "identity", "line search", "paper"]


def made(comm: Communicator, **options: Any) -> tuple[torch.nn.Module, NLCG]:
    model = small_network()
    return model, NLCG(model, "cross_entropy", comm=comm, **options)


@pytest.mark.parametrize("options", VARIANTS, ids=IDS)
@pytest.mark.parametrize("full_batch", [True, False])
def test_its_steps_are_those_of_the_method(comm: Communicator, full_batch: bool, options: dict[str, Any]) -> None:
    (inputs, targets), (model, optimizer) = samples(), made(comm, weight_decay=0.01, full_batch=full_batch, **options)
    objective, solver = sharded(comm, model=small_network(), weight_decay=0.01), make_solver("nlcg", options)
    state = solver.init(objective)
    for number in range(6):
        batch = Batch(None if full_batch else torch.arange(len(inputs)), len(inputs), len(inputs), (0, number))
        decay = 0.005 * objective.dot(state["parameters"], state["parameters"])  # type: ignore[arg-type]
        state, report = solver.step(objective, state, batch)
        assert optimizer.step(inputs, targets) == pytest.approx(report.loss - decay, rel=1e-10)
        assert optimizer.report is not None
        assert optimizer.report.accepted == report.accepted
        torch.testing.assert_close(values_of(model), state["parameters"], rtol=1e-8, atol=1e-9)


def test_within_averaged_the_model_holds_the_mean_of_the_iterates(comm: Communicator) -> None:
    (inputs, targets), (model, optimizer) = samples(), made(comm)
    for part in (slice(0, 12), slice(12, 24), slice(24, 37)) * 4:
        optimizer.step(inputs[part], targets[part])
    last = values_of(model)
    with optimizer.averaged():
        assert torch.equal(values_of(model), optimizer.state_dict()["state"][0]["average"])
        assert not torch.equal(values_of(model), last)
    assert torch.equal(values_of(model), last)


@pytest.mark.parametrize("options", [IDENTITY, {**IDENTITY, "step_rule": "strong_wolfe"}])
def test_parameters_that_the_user_changed_are_a_new_beginning(comm: Communicator, options: dict[str, Any]) -> None:
    (inputs, targets), (model, optimizer) = samples(), made(comm, **options)
    for _ in range(3):
        optimizer.step(inputs, targets)
    with torch.no_grad():
        model[0].weight.mul_(0.5)
    changed = values_of(model)
    optimizer.step(inputs, targets)
    moved, objective = values_of(model) - changed, sharded(comm)
    _, gradient = objective.value_and_gradient(changed, objective.full_batch)
    torch.testing.assert_close(moved / moved.norm(), -gradient / gradient.norm(), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("options", VARIANTS, ids=IDS)
def test_a_saved_optimiser_goes_on_to_the_last_bit(comm: Communicator, options: dict[str, Any]) -> None:
    (inputs, targets), (model, optimizer) = samples(), made(comm, **options)
    batches = [slice(0, 12), slice(12, 24), slice(24, 37)]
    for part in batches:
        optimizer.step(inputs[part], targets[part])
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    expected = [optimizer.step(inputs[part], targets[part]) for part in batches]
    file.seek(0)
    saved, (again, other) = torch.load(file, weights_only=True), made(comm, **options)
    again.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    assert [other.step(inputs[part], targets[part]) for part in batches] == expected
    assert torch.equal(values_of(again), values_of(model))


def test_a_schedule_over_epochs_is_refused(comm: Communicator) -> None:
    with pytest.raises(UsageError, match="which a loop of your own does not tell"):
        made(comm, preset="paper")


def test_it_is_named_in_what_it_refuses(comm: Communicator) -> None:
    with pytest.raises(UsageError, match="NLCG: weight_decay = -1"):
        made(comm, weight_decay=-1)
    with pytest.raises(UsageError, match="did you mean 'average'"):
        made(comm, averages=0.1)
    with pytest.raises(UsageError, match=r"hpcopt\.optim\.NLCG\(model, loss_fn\)"):
        NLCG(small_network().parameters(), "cross_entropy", comm=comm)  # type: ignore[arg-type]
