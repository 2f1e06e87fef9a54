"""The network on every grid of (simulated) ranks is the network on one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from hpcopt.errors import UsageError
from hpcopt.objective.network.objective import NetworkObjective
from tests.support.networks import (
    BATCH,
    FOUR,
    ONE,
    SAMPLES,
    THREE,
    assemble,
    data,
    on_grid,
    positions,
    reference_jacobian,
    reference_outputs,
    reference_value,
    start,
)
from tests.support.simulated import on_ranks

GRIDS = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (1, 3), (2, 3), (3, 2)]


@pytest.fixture(params=GRIDS, ids=str)
def grid(request):
    return request.param


def evaluate(grid, w, batch=None, **options):
    """Values of all ranks, the layout, and the whole gradient."""

    def run(comm: Any):
        objective = on_grid(comm, grid, **options)
        own = w[positions(objective.partition, comm.rank)].to(objective.inputs.dtype)
        chosen = batch or objective.full_batch
        value, gradient = objective.value_and_gradient(own, chosen)
        assert objective.value(own, chosen) == pytest.approx(value, rel=1e-12 if own.dtype == torch.float64 else 1e-6)
        return value, objective.partition, gradient

    found = on_ranks(grid[0] * grid[1], run)
    return [each[0] for each in found], assemble(found[0][1], [each[2] for each in found])


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
@pytest.mark.parametrize("sizes", [FOUR, THREE, ONE], ids=str)
def test_value_and_gradient_are_those_of_torch_on_every_grid(grid, loss, sizes, activation):
    w = start(sizes).requires_grad_()
    expected = reference_value(sizes, activation, loss, w, 0.01)
    (slope,) = torch.autograd.grad(expected, w)
    values, gradient = evaluate(
        grid, w.detach(), sizes=sizes, loss=loss, activation=activation, weight_decay=0.01, micro_batch=4
    )
    assert values == pytest.approx([float(expected.detach())] * len(values), rel=1e-13)
    assert len(set(values)) == 1
    torch.testing.assert_close(gradient, slope, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("sizes", [FOUR, THREE], ids=str)
def test_the_gradient_is_that_of_complex_steps(grid, loss, sizes):
    w = start(sizes)
    inputs, targets = data(sizes, loss)
    jacobian = reference_jacobian(sizes, "tanh", w, inputs)
    outputs = torch.from_numpy(reference_outputs(sizes, "tanh", w.numpy(), inputs.numpy()))
    one_hot = targets if loss == "squared" else torch.nn.functional.one_hot(targets, sizes[-1]).double()
    errors = (outputs if loss == "squared" else outputs.softmax(1)) - one_hot
    _, gradient = evaluate(grid, w, sizes=sizes, loss=loss)
    torch.testing.assert_close(gradient, jacobian.T @ errors.reshape(-1) / SAMPLES, rtol=1e-12, atol=1e-14)


def test_a_batch_is_its_samples(grid, loss):
    w = start(FOUR)
    values, gradient = evaluate(grid, w, BATCH, loss=loss, micro_batch=2)
    alone, expected = evaluate((1, 1), w, BATCH, loss=loss)
    assert values == pytest.approx(alone * len(values), rel=1e-13)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


def test_float32_is_as_good_as_its_rounding(grid, loss):
    w = start(FOUR)
    values, gradient = evaluate(grid, w, loss=loss, dtype=torch.float32)
    alone, expected = evaluate((1, 1), w, loss=loss)
    assert values == pytest.approx(alone * len(values), rel=1e-5)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("init", ["he", "xavier", "sparse"])
def test_the_first_weights_do_not_depend_on_the_grid(grid, init):
    def run(comm):
        objective = on_grid(comm, grid, init=init, seed=7)
        return objective.partition, objective.initial_vector()

    found = on_ranks(grid[0] * grid[1], run)
    (alone,) = on_ranks(1, lambda comm: on_grid(comm, (1, 1), init=init, seed=7).initial_vector())
    assert torch.equal(assemble(found[0][0], [each[1] for each in found]), alone)


def test_products_of_vectors_are_of_all_ranks(grid):
    x, y = start(FOUR, 1), start(FOUR, 2)

    def run(comm):
        objective = on_grid(comm, grid)
        mine = positions(objective.partition, comm.rank)
        stacked = torch.stack([x[mine], y[mine]])
        return objective.dot(x[mine], y[mine]), objective.inner(stacked, stacked[:1]), objective.agree(comm.rank + 1.0)

    for dot, inner, agreed in on_ranks(grid[0] * grid[1], run):
        assert dot == pytest.approx(float(x @ y), rel=1e-13)
        torch.testing.assert_close(inner, torch.stack([x @ x, y @ x])[:, None], rtol=1e-13, atol=0)
        assert agreed == (1.0,)


def test_predictions_are_whole_on_every_rank(grid):
    w = start(THREE)
    expected = reference_outputs(THREE, "tanh", w.numpy(), data(THREE, "squared")[0].numpy())

    def run(comm):
        objective = on_grid(comm, grid, sizes=THREE, micro_batch=4)
        return objective.predict(w[positions(objective.partition, comm.rank)], objective.full_batch)

    for outputs in on_ranks(grid[0] * grid[1], run):
        np.testing.assert_allclose(outputs.numpy(), expected, rtol=1e-12)


def test_an_evaluation_sends_what_its_closed_form_says(grid, loss):
    """Forward b v_m a layer, backward b u_m a layer but the first, where a group has more than one rank."""

    def run(comm):
        objective = on_grid(comm, grid, loss=loss)
        w, before = objective.initial_vector(), comm.ledger.snapshot()
        objective.value_and_gradient(w, objective.full_batch)
        return objective.partition, {row.label: (row.calls, row.bytes) for row in comm.ledger.rows(before)}

    for rank, (layout, sent) in enumerate(on_ranks(grid[0] * grid[1], run)):
        blocks = layout.blocks(rank)
        forward = [b.outputs.count for b in blocks if layout.groups(b.number - 1) > 1]
        backward = [b.inputs.count for b in blocks[1:] if layout.groups(b.number) > 1]
        expected = {"value": (1, 16)}
        for label, counts in (("forward", forward), ("backward", backward)):
            if counts:
                expected[label] = (len(counts), 8 * SAMPLES * sum(counts))
        if loss == "cross_entropy" and layout.groups(layout.layers) > 1:
            expected["softmax"] = (2, 2 * 8 * SAMPLES)
        assert sent == expected


def test_work_is_counted_in_passes_over_all_samples():
    def run(comm):
        objective = on_grid(comm, (1, 2))
        w = objective.initial_vector()
        objective.value(w, objective.full_batch)
        objective.value_and_gradient(w, BATCH)
        return objective.work

    for work in on_ranks(2, run):
        assert work.values == 1
        assert work.gradients == pytest.approx(5 / SAMPLES)


def test_cross_entropy_of_far_apart_scores_is_exact_and_of_nan_is_nan(grid):
    w = 400 * start(FOUR)
    values, gradient = evaluate(grid, w)
    expected = float(reference_value(FOUR, "tanh", "cross_entropy", w))
    assert values == pytest.approx([expected] * len(values), rel=1e-12)
    assert bool(gradient.isfinite().all())
    w[0] = math.nan

    def run(comm):
        objective = on_grid(comm, grid)
        return objective.value(w[positions(objective.partition, comm.rank)], objective.full_batch)

    assert all(math.isnan(value) for value in on_ranks(grid[0] * grid[1], run))


def test_probabilities_may_stand_for_labels():
    inputs, labels = data(FOUR, "cross_entropy")
    columns = torch.nn.functional.one_hot(labels, 3).double()

    def run(comm, targets):
        objective = NetworkObjective(FOUR, "tanh", "cross_entropy", inputs, targets, comm)
        return objective.value(objective.initial_vector(), objective.full_batch)

    (one,), (other,) = (on_ranks(1, lambda comm, t=targets: run(comm, t)) for targets in (labels, columns))
    assert one == other
    with pytest.raises(UsageError, match="sum to 1"):
        on_ranks(1, lambda comm: run(comm, 2 * columns))


REFUSED = {
    "sizes": (dict(sizes=(5,), grid=None), r"sizes = \[5\] is no network"),
    "grid": (dict(grid=(2, 2)), "does not fit 2 ranks"),
    "grid of layers": (dict(sizes=(5, 1, 3), grid=(1, 2)), "1 neurons of layer 1 in 2 groups"),
    "activation": (dict(activation="rellu"), "did you mean 'relu'"),
    "loss": (dict(loss="hinge"), "loss = 'hinge'"),
    "init": (dict(init="zeros"), "init = 'zeros'"),
    "jacobian": (dict(jacobian="dense"), "explicit, implicit"),
    "micro_batch": (dict(micro_batch=-1), "micro_batch = -1 is not allowed"),
    "memory_limit": (dict(memory_limit=0.5), "memory_limit = 0.5 is not allowed"),
    "weight_decay": (dict(weight_decay=-0.1), "weight_decay = -0.1 is not allowed"),
    "all features": (dict(inputs=torch.zeros(4, 5)), "this rank holds features . to . of 5: give it only these"),
    "targets": (dict(targets=torch.zeros(4, 2)), "this rank holds outputs . to . of 3"),
    "labels": (dict(targets=torch.tensor([0, 1, 2, 3])), "labels run from 0 to 3.*0 to 2"),
    "length": (dict(targets=torch.tensor([0, 1])), "4 inputs but 2 targets"),
    "not finite": (dict(inputs=torch.full((4, 3), torch.nan)), "an input of this rank is not finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_on_all_ranks(case):
    changed, text = REFUSED[case]

    def run(comm):
        given = dict(sizes=(5, 4, 3), activation="relu", loss="cross_entropy", targets=torch.tensor([0, 1, 2, 0]))
        given |= dict(inputs=torch.zeros(4, 3 if comm.rank == 0 else 2), grid=(2, 1)) | changed
        if case == "not finite" and comm.rank == 1:
            given["inputs"] = torch.zeros(4, 2)
        with pytest.raises(UsageError, match=text):
            NetworkObjective(comm=comm, **given)
        return True

    assert all(on_ranks(2, run))


def test_ranks_with_different_samples_are_refused():
    def run(comm):
        count = 4 + comm.rank
        with pytest.raises(UsageError, match="from 4 to 5 samples"):
            NetworkObjective(
                *((4, 4, 2), "relu", "squared", torch.zeros(count, 2), torch.zeros(count, 1), comm, (2, 1))
            )
        return True

    assert all(on_ranks(2, run))


@pytest.mark.parametrize(
    "call",
    [
        lambda objective: objective.local,
        lambda objective: objective.parameter_tensors(),
        lambda objective: objective.combine(objective.initial_vector(), []),
        lambda objective: objective.value_and_gradients(objective.initial_vector(), objective.full_batch),
    ],
)
def test_what_needs_whole_layers_or_local_functions_is_refused(call):
    def run(comm):
        with pytest.raises(UsageError, match="cut over the ranks"):
            call(on_grid(comm, (1, 1)))
        return True

    assert on_ranks(1, run) == [True]
