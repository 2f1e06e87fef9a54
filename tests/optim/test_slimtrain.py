"""hpcopt.optim.SlimTrain on one rank: what it does not share with the other methods that take a model."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Batch
from hpcopt.optim import SlimTrain
from hpcopt.solvers.registry import make_solver
from tests.support.closures import values_of
from tests.support.last_layers import data, network
from tests.support.problems import samples, sharded, small_network

PARTS = (slice(0, 12), slice(12, 24), slice(24, 37))


def made(comm: Communicator, **options: Any) -> tuple[torch.nn.Module, SlimTrain]:
    model = small_network()
    return model, SlimTrain(model[:-1], model[-1], comm=comm, **options)


@pytest.mark.parametrize("options", [{}, {"form": "tsqr", "memory": 1}, {"preset": "paper", "theta_solver": "sgd"}])
def test_its_steps_are_those_of_the_method(comm: Communicator, options: dict[str, Any]) -> None:
    (inputs, targets), (model, optimizer) = samples("squared"), made(comm, weight_decay=0.01, **options)
    objective, solver = (
        sharded(comm, "squared", weight_decay=0.01),
        make_solver("slimtrain", {"deliver": "iterate", **options}),
    )
    state = solver.init(objective)
    for number, part in enumerate(PARTS * 2):
        indices = torch.arange(len(inputs))[part]
        decay = 0.005 * objective.dot(state["parameters"], state["parameters"])  # type: ignore[arg-type]
        state, report = solver.step(objective, state, Batch(indices, len(indices), len(indices), (0, number)))
        assert optimizer.step(inputs[part], targets[part]) == pytest.approx(report.loss - decay, rel=1e-10)
        torch.testing.assert_close(values_of(model), state["parameters"], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("micro_batch", [None, 5])
def test_a_decoder_is_solved_for_from_the_first_step(comm: Communicator, micro_batch: int | None) -> None:
    """How many outputs a sample has is known once there is one."""
    inputs, targets = data("decoder")
    model = network("decoder")
    optimizer = SlimTrain(model[:2], model[2], comm=comm, micro_batch=micro_batch)  # type: ignore[index]
    objective, solver = (
        DataParallelObjective(network("decoder"), "squared", inputs, targets, comm),
        make_solver("slimtrain", {}),
    )
    state = solver.init(objective)
    for number, part in enumerate(PARTS):
        indices = torch.arange(len(inputs))[part]
        state, _ = solver.step(objective, state, Batch(indices, len(indices), len(indices), (0, number)))
        optimizer.step(inputs[part], targets[part])
        torch.testing.assert_close(values_of(model), state["parameters"], rtol=1e-8, atol=1e-9)


def test_it_goes_on_from_what_was_saved_to_the_last_bit(comm: Communicator) -> None:
    (inputs, targets), (model, optimizer) = samples("squared"), made(comm)
    for part in PARTS:
        optimizer.step(inputs[part], targets[part])
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    expected = [optimizer.step(inputs[part], targets[part]) for part in PARTS]
    file.seek(0)
    weights, state = torch.load(file)
    again, resumed = made(comm)
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    assert [resumed.step(inputs[part], targets[part]) for part in PARTS] == expected
    assert torch.equal(values_of(again), values_of(model))


def test_an_exception_of_the_model_is_raised_and_leaves_it_as_it_was(comm: Communicator) -> None:
    (inputs, targets), (model, optimizer) = samples("squared"), made(comm)
    optimizer.step(inputs, targets)
    before = values_of(model)
    hook = model[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(inputs, targets)
    hook.remove()
    assert torch.equal(values_of(model), before)
    assert optimizer.step(inputs, targets) > 0


def test_what_is_no_pair_of_modules_or_follows_epochs_is_refused(comm: Communicator) -> None:
    model = small_network()
    with pytest.raises(UsageError, match="needs two modules"):
        SlimTrain(model, "squared", comm=comm)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="with variables is LayerNorm"):
        SlimTrain(model, torch.nn.LayerNorm(3).double(), comm=comm)
    for options in ({"schedule": "cosine", "decay_epochs": 3.0}, {"deliver": "refit"}):
        with pytest.raises(UsageError, match="a loop of your own does not tell"):
            SlimTrain(model[:-1], model[-1], comm=comm, **options)
