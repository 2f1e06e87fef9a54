"""With every layer on (simulated) ranks of its own the network is the same, and its messages are what it says."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from hpcopt.errors import UsageError
from hpcopt.kernels.torch_kernels import TorchKernels
from hpcopt.layout.disjoint import ranks_of
from hpcopt.objective.network.data import make_layout
from hpcopt.objective.network.objective import NetworkObjective
from hpcopt.objective.network.pipeline import IN_FLIGHT
from hpcopt.objective.protocol import Batch
from hpcopt.solvers.registry import make_solver
from tests.support.networks import (
    BATCH,
    CLOSE,
    DECAY,
    FOUR,
    ONE,
    ROWS,
    SAMPLES,
    THREE,
    assemble,
    data,
    dense,
    on_grid,
    on_own_ranks,
    positions,
    reference_outputs,
    reference_value,
    start,
)
from tests.support.simulated import PATIENCE, on_ranks

CUTS = [(ONE, (3, 2)), (THREE, (1, 1, 1, 1)), (THREE, (2, 1, 2, 3)), (FOUR, (1, 3, 2, 1, 2))]


@pytest.fixture(params=CUTS, ids=str)
def cut(request):
    return request.param


def everywhere(cut, loss, use, **options):
    """What ``use(objective, this rank's numbers of w)`` returns on every rank, and the layout."""
    sizes, split = cut

    def run(comm: Any):
        objective = on_own_ranks(comm, split, sizes, loss, weight_decay=DECAY, **options)
        mine = start(sizes)[positions(objective.partition, comm.rank)].to(objective.inputs.dtype)
        return objective.partition, use(objective, mine)

    found = on_ranks(ranks_of(split), run)
    return found[0][0], [each for _, each in found]


@pytest.mark.parametrize("options", [{}, {"micro_batch": 4, "pipeline": 3}, {"pipeline": 1}], ids=str)
@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_value_and_gradient_are_those_of_torch(cut, loss, activation, options):
    w = start(cut[0]).requires_grad_()
    expected = reference_value(cut[0], activation, loss, w, DECAY)
    (slope,) = torch.autograd.grad(expected, w)

    def evaluate(objective, mine):
        value, gradient = objective.value_and_gradient(mine, objective.full_batch)
        assert objective.value(mine, objective.full_batch) == pytest.approx(value, rel=1e-13)
        return value, gradient

    layout, found = everywhere(cut, loss, evaluate, activation=activation, **options)
    assert [value for value, _ in found] == pytest.approx([float(expected.detach())] * layout.ranks, rel=1e-12)
    torch.testing.assert_close(assemble(layout, [gradient for _, gradient in found]), slope, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("options", [{}, {"micro_batch": 2}, {"memory_limit": 1500}], ids=str)
@pytest.mark.parametrize("jacobian", ["explicit", "implicit"])
def test_products_are_those_of_the_dense_matrices(cut, loss, jacobian, options):
    sizes, (flat, matrix) = cut[0], dense(cut[0], loss)
    v, other = start(sizes, 8), start(sizes, 9)
    u = other.repeat(2)[: len(flat)]

    def products(objective, mine):
        own = positions(objective.partition, objective.comm.rank)
        linear = objective.linearize(mine, BATCH)
        curvatures = linear.curvatures(torch.stack([v[own], other[own]]))
        return linear.jvp(v[own]), linear.vjp(u.view(len(ROWS), -1)), linear.gauss_newton(v[own]), curvatures

    layout, found = everywhere(cut, loss, products, jacobian=jacobian, **options)
    jvp, vjp, product, curvatures = zip(*found, strict=True)
    stacked = torch.stack([v, other])
    for rank in range(layout.ranks):
        torch.testing.assert_close(jvp[rank].reshape(-1), flat @ v, **CLOSE)
        torch.testing.assert_close(curvatures[rank], stacked @ matrix @ stacked.T, rtol=1e-12, atol=1e-12)
        assert torch.equal(curvatures[rank], curvatures[0])
    torch.testing.assert_close(assemble(layout, list(vjp)), flat.T @ u, **CLOSE)
    torch.testing.assert_close(assemble(layout, list(product)), matrix @ v, **CLOSE)


def test_products_with_a_block_are_those_of_the_diagonal_block_and_send_nothing(cut, loss):
    sizes, (_, matrix) = cut[0], dense(cut[0], loss)
    v = start(sizes, 8)

    def check(objective, mine):
        own = positions(objective.partition, objective.comm.rank)
        linear = objective.linearize(mine, BATCH)
        before = objective.comm.ledger.snapshot()
        product = linear.block.product(v[own])
        (layer,) = linear.block.factors().layers
        assert objective.comm.ledger.rows(before) == []
        torch.testing.assert_close(product, matrix[own][:, own] @ v[own], **CLOSE)
        assert torch.equal(linear.block.product(v[own], by_layer=True), product)
        assert (layer.factors is None) == (objective.partition.outputs(objective.comm.rank).count > 0)

    everywhere(cut, loss, check)


def messages(objective, call):
    """Calls and float64 numbers under each label."""
    before = objective.comm.ledger.snapshot()
    call()
    return {row.label: (row.calls, row.bytes // 8) for row in objective.comm.ledger.rows(before)}


@pytest.mark.parametrize("pipeline", [1, 3])
def test_messages_are_what_the_closed_forms_say(cut, loss, pipeline):
    """Of each rank; and around all vertices b n_m forward and backward, b C n_m for the factors, whatever the split."""
    (sizes, split), b = cut, len(ROWS)
    last, outputs = len(sizes) - 1, sizes[-1]
    softmax = 2 * (loss == "cross_entropy" and split[-1] > 1)

    def check(objective, mine):
        (held,) = objective.partition.blocks(objective.comm.rank)
        u, v = held.inputs.count, held.outputs.count
        before = u if held.number > 1 else 0
        after = v if held.number < last else 0
        # Behind the last layer there are only the ranks that compute a group of outputs.
        ends = (before > 0) + (after > 0), before + after
        summed = (1, v) if held.number == last and split[-2] > 1 else (0, 0)

        def account(**entries):
            return {label: entry for label, entry in entries.items() if entry[0]}

        def expected(ends, each=1):
            return ends[0] * pipeline, ends[1] * b * each

        forward = expected((ends[0] + summed[0], ends[1] + summed[1]))
        # Of each piece the maximum and the sum of exponentials cross the groups of outputs.
        crossed = softmax if held.number == last else 0
        shared = {"softmax": (crossed, crossed * b)}
        gradient = messages(objective, lambda: objective.value_and_gradient(mine, BATCH))
        assert gradient == account(forward=forward, backward=expected(ends), value=(1, 2), **shared)
        linear = objective.linearize(mine, BATCH)
        made = messages(objective, lambda: objective.linearize(mine, BATCH))
        if loss == "cross_entropy" and objective.comm.size > 1:
            shared = {"softmax": (crossed + 1, crossed * b + b * outputs)}
        assert made == account(forward=forward, factors=expected(ends, outputs), **shared)
        product = messages(objective, lambda: linear.gauss_newton(mine))
        assert product == account(product=(int(objective.comm.size > 1), b * outputs))
        weight = {vertex: 1 / size for vertex, size in vertices(objective).items()}
        return sum(
            weight[m, group] * n
            for m, group, n in ((held.number - 1, held.inputs, before), (held.number, held.outputs, after))
        )

    def vertices(objective):
        """How many ranks are around each group of neurons."""
        found: dict[Any, int] = {}
        for rank in range(objective.comm.size):
            (held,) = objective.partition.blocks(rank)
            for vertex in ((held.number - 1, held.inputs), (held.number, held.outputs)):
                found[vertex] = found.get(vertex, 0) + 1
        return found

    _, found = everywhere(cut, loss, check, pipeline=pipeline)
    assert sum(found) == pytest.approx(sum(sizes[1:-1]))


def test_newton_takes_the_steps_of_a_single_process(cut, loss):
    def train(objective):
        solver = make_solver("newton", {"subset": 0.5, "subset_least": 5, "cg_iterations": 8}, 20.0)
        state, trace = solver.init(objective), []
        for _ in range(4):
            state, report = solver.step(objective, state, objective.full_batch)
            trace.append(report.loss)
        return trace

    _, found = everywhere(cut, loss, lambda objective, _: train(objective))
    (alone,) = on_ranks(1, lambda comm: train(on_grid(comm, (1, 1), cut[0], loss, weight_decay=DECAY)))
    assert all(trace == found[0] for trace in found)
    assert found[0] == pytest.approx(alone, rel=1e-10)


@pytest.mark.parametrize("init", ["he", "sparse"])
def test_the_first_weights_and_the_predictions_are_those_of_a_single_process(cut, init):
    def predict(objective, mine):
        return objective.initial_vector(), objective.predict(mine, objective.full_batch)

    layout, found = everywhere(cut, "squared", predict, init=init, seed=7)
    (alone,) = on_ranks(1, lambda comm: on_grid(comm, (1, 1), cut[0], init=init, seed=7).initial_vector())
    assert torch.equal(assemble(layout, [first for first, _ in found]), alone)
    expected = reference_outputs(cut[0], "tanh", start(cut[0]).numpy(), data(cut[0], "squared")[0].numpy())
    for _, outputs in found:
        torch.testing.assert_close(outputs, torch.from_numpy(expected), **CLOSE)


def test_float32_is_as_good_as_its_rounding(cut, loss):
    expected = float(reference_value(cut[0], "tanh", loss, start(cut[0]), DECAY))
    use = lambda objective, mine: objective.value_and_gradient(mine, objective.full_batch)[0]  # noqa: E731
    _, found = everywhere(cut, loss, use, dtype=torch.float32)
    assert found == pytest.approx([expected] * len(found), rel=1e-5)


def test_an_evaluation_counts_every_sample_once(cut, loss):
    inputs, targets = data(cut[0], loss)

    def evaluate(objective, mine):
        held = objective.partition.features(objective.comm.rank).slice
        own = targets if targets.ndim == 1 else targets[:, objective.partition.outputs(objective.comm.rank).slice]
        moments = objective.moments(own)
        return *objective.evaluate(mine, (inputs[:, held], own)), moments

    (alone,) = on_ranks(1, lambda comm: evaluate(on_grid(comm, (1, 1), cut[0], loss), start(cut[0])))
    _, found = everywhere(cut, loss, evaluate)
    for train, test, moments in found:
        assert train == pytest.approx(alone[0], rel=1e-12)
        assert test == pytest.approx(alone[1], rel=1e-12)
        assert moments == pytest.approx(alone[2], rel=1e-12)


def test_an_empty_batch_has_no_curvature_but_decay():
    def check(objective, mine):
        linear = objective.linearize(mine, Batch(torch.tensor([], dtype=torch.int64), 0, 1))
        assert torch.equal(linear.gauss_newton(mine), DECAY * mine)

    for jacobian in ("explicit", "implicit"):
        everywhere((THREE, (2, 1, 2, 3)), "cross_entropy", check, jacobian=jacobian)


@pytest.mark.parametrize(
    ("ranks", "options", "text"),
    [
        (2, {"mapping": "paper"}, "each of the 3 layers .* only 2"),
        (4, {"mapping": "paper", "split": [1, 1, 1, 1]}, r"does not fit 4 ranks: .* add up to 3.*Start 3 ranks"),
        (4, {"mapping": "paper", "grid": [2, 2]}, r'grid = \[2, 2\] is for mapping = "grid", but mapping = "paper"'),
        (4, {"split": [2, 1, 1, 1]}, r'split = .* is for mapping = "paper", but mapping = "grid"'),
        (4, {"mapping": "papers"}, "mapping = 'papers' is not known"),
    ],
)
def test_what_does_not_fit_is_refused(ranks, options, text):
    given = {"grid": None, **options}
    with pytest.raises(UsageError, match=text):
        make_layout(THREE, given.pop("grid"), ranks, **given)


def test_columns_for_a_rank_that_holds_none_are_refused_on_all_ranks():
    def check(comm):
        with pytest.raises(UsageError, match="this rank holds features 0 to 5 of 6"):
            NetworkObjective(ONE, "relu", "squared", torch.zeros(3, 2), torch.zeros(3, 4), comm, mapping="paper")

    on_ranks(1, check)


def test_a_layer_goes_on_with_the_next_block_while_the_layer_behind_it_is_busy():
    ahead = threading.Event()

    def check(objective, mine):
        if objective.comm.rank == 1:
            assert ahead.wait(PATIENCE / 2)
            return objective.value(mine, objective.full_batch)
        kernels, blocks = TorchKernels(), []
        affine = kernels.affine

        def counted(*given):
            blocks.append(len(given[0]))
            if len(blocks) == IN_FLIGHT:
                ahead.set()
            return affine(*given)

        kernels.affine, objective.network.kernels = counted, kernels
        value = objective.value(mine, objective.full_batch)
        assert blocks == [3, 2, 2, 2, 2]
        return value

    _, values = everywhere(((5, 7, 3), (1, 1, 1)), "squared", check, pipeline=5)
    assert values[0] == values[1]


def test_auto_measures_both_forms_of_the_jacobian():
    use = lambda objective, mine: objective.jacobian  # noqa: E731
    _, found = everywhere((THREE, (2, 1, 2, 3)), "cross_entropy", use, jacobian="auto")
    assert set(found) in ({"explicit"}, {"implicit"})


def test_pieces_of_fewer_instances_than_blocks_go_one_by_one():
    def check(objective, mine):
        objective.value(mine, Batch(torch.tensor([2]), 1, 1))

    everywhere((THREE, (2, 1, 2, 3)), "cross_entropy", check, pipeline=SAMPLES + 3)
