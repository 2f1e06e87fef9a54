"""What slimTrain evaluates and delivers: a mean of its iterates, and a last layer solved for on all samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Batch
from hpcopt.solvers.registry import make_solver
from hpcopt.solvers.slimtrain import SlimTrain
from hpcopt.solvers.solver import State
from tests.solvers.test_slimtrain import BATCHES
from tests.support.last_layers import KINDS, data, network
from tests.support.problems import samples, sharded, small_network


def epoch(objective: DataParallelObjective, **options: Any) -> State:
    """One pass in three batches, the last of which says so."""
    solver = SlimTrain(**{"memory": 1, "learning_rate": 0.01, **options})
    state = solver.init(objective)
    for batch in (*BATCHES[:2], replace(BATCHES[2], ends_epoch=True)):
        state, _ = solver.step(objective, state, batch)
    return state


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["gram", "tsqr"])
def test_at_the_end_of_an_epoch_the_last_layer_is_that_of_all_samples(comm: Communicator, kind: str, form: str) -> None:
    """Ridge regression: no gradient but that of lambda |W|^2 / 2 is left in W, and all else is the iterate's."""
    objective = DataParallelObjective(network(kind), "squared", *data(kind), comm)
    state = epoch(objective, candidates=2, lambda_min=1e-3, lambda_max=1.0, form=form)
    last = slice(-objective.separable.outputs * objective.separable.width, None)
    found, iterate = state["average"], state["parameters"]
    assert torch.equal(found[: last.start], iterate[: last.start])  # type: ignore[index]
    _, gradient = objective.value_and_gradient(found, objective.full_batch)  # type: ignore[arg-type]
    ratios = -gradient[last] / found[last]  # type: ignore[index]
    chosen = 1.0 if float(ratios[0]) > 0.1 else 1e-3
    torch.testing.assert_close(ratios, torch.full_like(ratios, chosen), rtol=1e-6, atol=1e-9)


def test_between_the_ends_of_epochs_a_mean_of_the_latest_iterates_is_delivered(comm: Communicator) -> None:
    objective, solver = sharded(comm, "squared"), SlimTrain(average=0.5)
    state, iterates = solver.init(objective), []
    for batch in (*BATCHES, BATCHES[0]):
        state, _ = solver.step(objective, state, batch)
        iterates.append(state["parameters"].clone())  # type: ignore[union-attr]
    torch.testing.assert_close(state["average"], iterates[1].lerp(iterates[2], 2 / 3).lerp(iterates[3], 1 / 2))


@pytest.mark.parametrize(("average", "last"), [(0.0, BATCHES[0]), (1.0, None)])
def test_without_a_mean_and_on_full_batches_the_iterate_is_delivered(
    comm: Communicator, average: float, last: Batch | None
) -> None:
    objective, solver = sharded(comm, "squared"), SlimTrain(average=average)
    state = solver.init(objective)
    for batch in (*BATCHES, last or objective.full_batch):
        state, _ = solver.step(objective, state, batch)
    assert torch.equal(state["average"], state["parameters"])  # type: ignore[arg-type]


def test_the_rate_of_the_others_grows_unless_the_refit_leaves_more(comm: Communicator) -> None:
    objective, solver = sharded(comm, "squared"), SlimTrain(learning_rate=0.01, rate_growth=1.25)
    state, rates, losses = solver.init(objective), [], []
    for _ in range(3):
        state, report = solver.step(objective, state, replace(BATCHES[0], ends_epoch=True))
        rates.append(report.step_size)
        losses.append(objective.value(state["average"], objective.full_batch))  # type: ignore[arg-type]
    assert max(losses) < 1.1 * losses[0]
    assert rates == pytest.approx([0.01, 0.01, 0.0125])
    assert state["least_loss"] == pytest.approx(min(losses), rel=1e-9)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_refit_sees_the_network_as_it_is_evaluated(comm: Communicator, batch_norm: bool) -> None:
    """Without dropout, by running statistics; else pieces of the set make no difference. The graph is not kept."""
    found = []
    for micro_batch in (None,) if batch_norm else (None, 10):
        model = small_network(dropout=0.5, batch_norm=batch_norm)
        objective = sharded(comm, "squared", model=model, micro_batch=micro_batch)
        separable = objective.separable
        features = separable.everything(objective.initial_vector())
        found.append(torch.cat([rows.design for rows in features.rows()]))
        assert model.training
    torch.testing.assert_close(found[0], found[-1], rtol=1e-12, atol=1e-14)
    expected = model.eval()[:-1](samples("squared")[0]).detach() / len(found[0]) ** 0.5
    torch.testing.assert_close(found[0][:, :-1], expected, rtol=1e-12, atol=1e-14)


def normalised(comm: Communicator) -> tuple[DataParallelObjective, torch.nn.Sequential, torch.nn.BatchNorm1d]:
    """The problem with batch normalisation, whose statistics other iterates have left behind."""
    model = small_network(dropout=0.5, batch_norm=True)
    objective, norm = sharded(comm, "squared", model=model), model[2]
    assert isinstance(norm, torch.nn.BatchNorm1d)
    for batch in BATCHES:
        objective.value_and_gradient(3 * objective.initial_vector(), batch)
    return objective, model, norm


def test_the_statistics_of_a_refit_are_those_of_the_mean(comm: Communicator) -> None:
    objective, model, norm = normalised(comm)
    features = objective.separable.everything(objective.initial_vector())
    seen = model[:2](samples("squared")[0]).detach()
    torch.testing.assert_close(norm.running_mean, seen.mean(0), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(norm.running_var, seen.var(0), rtol=1e-12, atol=1e-14)
    assert sum(len(rows.design) for rows in features.rows()) == len(seen)
    assert (norm.momentum, norm.training, model[3].training) == (0.1, True, True)


def test_statistics_that_the_user_has_fixed_stay(comm: Communicator) -> None:
    objective, _, norm = normalised(comm)
    norm.eval()
    before = norm.running_mean.clone()  # type: ignore[union-attr]
    objective.separable.everything(objective.initial_vector())
    assert torch.equal(norm.running_mean, before)  # type: ignore[arg-type]
    assert not norm.training


def test_the_paper_preset_delivers_the_iterate_itself() -> None:
    solver = make_solver("slimtrain", {"preset": "paper"})
    assert isinstance(solver, SlimTrain)
    assert (solver.deliver, solver.schedule, solver.memory, solver.lambda_min) == ("iterate", "constant", 10, 1e-7)
