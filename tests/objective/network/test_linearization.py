"""Products with the Jacobian of a network on a grid are those of the dense matrix, which complex steps give."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hpcopt.errors import UsageError
from hpcopt.objective.protocol import Batch
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
    dense,
    on_grid,
    positions,
    start,
    whole_layout,
)
from tests.support.simulated import on_ranks

GRIDS = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (1, 3), (2, 3)]


@pytest.fixture(params=GRIDS, ids=str)
def grid(request):
    return request.param


@pytest.fixture(
    params=[(FOUR, "squared"), (FOUR, "cross_entropy"), (THREE, "cross_entropy"), (ONE, "squared")], ids=str
)
def problem(request):
    return request.param


def linearized(grid, problem, use, batch=BATCH, dtype=torch.float64, **options):
    """What ``use(objective, linearization, positions of the rank)`` returns on every rank."""
    sizes, loss = problem

    def run(comm: Any):
        objective = on_grid(comm, grid, sizes, loss, dtype=dtype, weight_decay=DECAY, **options)
        mine = positions(objective.partition, comm.rank)
        return use(objective, objective.linearize(start(sizes)[mine].to(dtype), batch), mine)

    return on_ranks(grid[0] * grid[1], run)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_factors_are_the_derivatives_of_the_outputs_by_what_the_units_are_given(grid, problem, activation):
    sizes, loss = problem
    jacobian = dense(sizes, loss, activation)[0].view(len(ROWS), sizes[-1], -1)
    whole = whole_layout(sizes).blocks(0)

    def check(objective, linear, mine):
        pieces = linear.block_factors()
        for held, layer in zip(objective.partition.blocks(objective.comm.rank)[:-1], whole, strict=False):
            units = torch.cat([piece.units[held.number] for piece in pieces])
            expected = jacobian[:, :, layer.biases][:, :, held.outputs.slice]
            torch.testing.assert_close(units, expected, **CLOSE)
        assert all(len(piece.units) == len(sizes) - 2 for piece in pieces)

    linearized(grid, problem, check, activation=activation, micro_batch=3)


@pytest.mark.parametrize("options", [{}, {"micro_batch": 2}, {"memory_limit": 1500}], ids=str)
@pytest.mark.parametrize("jacobian", ["explicit", "implicit"])
def test_products_are_those_of_the_dense_matrices(grid, problem, jacobian, options):
    flat, matrix = dense(*problem)
    v, u = start(problem[0], 8), start(problem[0], 9)[: len(flat)].view(len(ROWS), -1)

    def products(objective, linear, mine):
        directions = torch.stack([v[mine], start(problem[0], 7)[mine]])
        return (
            objective.partition,
            *(linear.jvp(v[mine]), linear.vjp(u), linear.gauss_newton(v[mine]), linear.curvatures(directions)),
        )

    layouts, jvp, vjp, product, curvatures = zip(
        *linearized(grid, problem, products, jacobian=jacobian, **options), strict=True
    )
    stacked = torch.stack([v, start(problem[0], 7)])
    for rank in range(len(jvp)):
        torch.testing.assert_close(jvp[rank].reshape(-1), flat @ v, **CLOSE)
        torch.testing.assert_close(curvatures[rank], stacked @ matrix @ stacked.T, rtol=1e-12, atol=1e-12)
        assert torch.equal(curvatures[rank], curvatures[0])
    torch.testing.assert_close(assemble(layouts[0], list(vjp)), flat.T @ u.reshape(-1), **CLOSE)
    torch.testing.assert_close(assemble(layouts[0], list(product)), matrix @ v, **CLOSE)


def test_products_with_a_block_are_those_of_the_diagonal_block_and_send_nothing(grid, problem):
    v, matrix = start(problem[0], 8), dense(*problem)[1]

    def check(objective, linear, mine):
        before = objective.comm.ledger.snapshot()
        product = linear.block_product(v[mine])
        by_layer = linear.block_product(v[mine], by_layer=True)
        assert objective.comm.ledger.rows(before) == []
        torch.testing.assert_close(product, matrix[mine][:, mine] @ v[mine], **CLOSE)
        for held in objective.partition.blocks(objective.comm.rank):
            place = slice(held.start, held.biases.stop)
            layer = mine[place]
            torch.testing.assert_close(by_layer[place], matrix[layer][:, layer] @ v[layer], **CLOSE)

    linearized(grid, problem, check, micro_batch=2)


@pytest.mark.parametrize("jacobian", ["explicit", "implicit"])
def test_float32_is_as_good_as_its_rounding(grid, problem, jacobian):
    v, matrix = start(problem[0], 8), dense(*problem)[1]

    def products(objective, linear, mine):
        own = v[mine].float()
        return objective.partition, linear.gauss_newton(own), linear.curvatures(own[None])

    found = linearized(grid, problem, products, dtype=torch.float32, jacobian=jacobian)
    product = assemble(found[0][0], [each[1] for each in found])
    torch.testing.assert_close(product.double(), matrix @ v, rtol=1e-4, atol=1e-4)
    assert found[0][2].dtype == torch.float64
    assert float(found[0][2]) == pytest.approx(float(v @ matrix @ v), rel=1e-5)


@pytest.mark.parametrize("limit", [1, 10**9])
@pytest.mark.parametrize("jacobian", ["explicit", "implicit"])
def test_the_point_stays_when_the_vector_moves_on_and_products_are_new_vectors(jacobian, limit):
    def check(objective, linear, mine):
        w = objective.initial_vector()
        linear, v = objective.linearize(w, BATCH), torch.ones_like(w)
        before = linear.gauss_newton(v)
        w.add_(1.0)
        objective.value_and_gradient(w, BATCH)
        after = linear.gauss_newton(v)
        assert torch.equal(after, before)
        assert after.data_ptr() != before.data_ptr()

    linearized((2, 1), (FOUR, "cross_entropy"), check, jacobian=jacobian, memory_limit=limit)


def messages(objective, call):
    """Calls and bytes under each label."""
    before = objective.comm.ledger.snapshot()
    call()
    return {row.label: (row.calls, row.bytes) for row in objective.comm.ledger.rows(before)}


def account(**entries):
    """The labels with anything to send: label = lengths of its messages in float64."""
    return {label: (len(counts), 8 * sum(counts)) for label, counts in entries.items() if counts}


def closed_forms(objective):
    """Numbers of a forward sweep, a backward sweep, and of the factors, a call each, from the sizes alone."""
    layout, b, outputs = objective.partition, len(ROWS), objective.outputs
    blocks = layout.blocks(objective.comm.rank)
    forward = [b * held.outputs.count for held in blocks if layout.groups(held.number - 1) > 1]
    backward = [b * held.inputs.count for held in blocks[1:] if layout.groups(held.number) > 1]
    factors = [b * outputs * held.inputs.count for held in blocks[1:-1] if layout.groups(held.number) > 1]
    split = layout.groups(layout.layers) > 1
    if split and len(blocks) > 1:
        factors.append(blocks[-1].inputs.count * outputs)
    return forward, backward, factors, split and objective.split_loss.name == "cross_entropy"


def test_the_explicit_jacobian_sends_what_its_closed_forms_say(grid, problem):
    b, outputs = len(ROWS), problem[0][-1]

    def check(objective, linear, mine):
        w, ranks = start(problem[0])[mine], objective.comm.size
        forward, _, factors, split = closed_forms(objective)
        softmax = [b, b, b * outputs] if split else []
        made = messages(objective, lambda: objective.linearize(w, BATCH))
        assert made == account(forward=forward, factors=factors, softmax=softmax)
        product = account(product=[b * outputs] if ranks > 1 else [])
        assert messages(objective, lambda: linear.gauss_newton(w)) == product
        assert messages(objective, lambda: linear.jvp(w)) == product
        assert messages(objective, lambda: linear.vjp(torch.ones(b, outputs, dtype=w.dtype))) == {}
        curvatures = messages(objective, lambda: linear.curvatures(torch.stack([w, w])))
        agreed = [4] if objective.comm.size > 1 else []
        assert curvatures == account(curvatures=[2 * b * outputs + 4], scalars=agreed)

    linearized(grid, problem, check)


def test_the_implicit_jacobian_sends_what_its_closed_forms_say(grid, problem):
    def check(objective, linear, mine):
        w = start(problem[0])[mine]
        forward, backward, _, split = closed_forms(objective)
        made = messages(objective, lambda: objective.linearize(w, BATCH))
        assert made == account(forward=forward, softmax=[len(ROWS)] * 2 * split)
        product = messages(objective, lambda: linear.gauss_newton(w))
        assert product == account(forward=forward, backward=backward, softmax=[len(ROWS)] * split)

    linearized(grid, problem, check, jacobian="implicit")


@pytest.mark.parametrize("jacobian", ["explicit", "implicit"])
@pytest.mark.parametrize("limit", [1, 300, 1000, 10**9])
def test_what_is_kept_stays_under_the_limit(jacobian, limit):
    def check(objective, linear, mine):
        kept, *others = linear._pieces.groups()
        arrays = [each for piece in kept for each in (piece.inputs, getattr(piece, "units", {}))]
        fields = [tensor for each in arrays for tensor in each.values()]
        curvature = sum(piece.curvature.nbytes for piece in kept)
        assert curvature + sum(tensor.nbytes for tensor in fields) <= options["memory_limit"]
        assert (kept == []) == (limit == 1)
        assert (others == []) == linear._pieces.complete == (limit == 10**9)
        return [piece.rows for group in [kept, *others] for piece in group]

    options = {"jacobian": jacobian, "memory_limit": limit * (4 if jacobian == "explicit" else 1)}
    for rows in linearized((2, 2), (FOUR, "cross_entropy"), check, Batch(None, SAMPLES, SAMPLES), **options):
        assert [i for piece in rows for i in range(piece.start, piece.stop)] == list(range(SAMPLES))


def test_a_block_of_factors_that_do_not_fit_is_refused():
    def check(objective, linear, mine):
        with pytest.raises(UsageError, match="Raise memory_limit"):
            linear.block_product(objective.initial_vector())

    linearized((1, 2), (FOUR, "squared"), check, memory_limit=1500)


def test_an_empty_batch_has_no_curvature_but_decay():
    def check(objective, linear, mine):
        v = objective.initial_vector()
        assert torch.equal(linear.gauss_newton(v), DECAY * v)
        assert linear.jvp(v).shape == (0, 3)
        torch.testing.assert_close(linear.curvatures(v[None]), DECAY * objective.inner(v[None], v[None]))

    nothing = Batch(torch.tensor([], dtype=torch.int64), 0, 1)
    for jacobian in ("explicit", "implicit"):
        linearized((1, 2), (FOUR, "cross_entropy"), check, nothing, jacobian=jacobian)


def test_products_are_counted_as_passes_and_the_explicit_jacobian_as_the_sweeps_it_takes():
    def check(objective, linear, mine):
        part = len(ROWS) / SAMPLES
        assert objective.work.values == pytest.approx((1 + 3) * part)
        linear.gauss_newton(start(FOUR)[mine])
        linear.curvatures(start(FOUR)[mine][None])
        assert objective.work.curvature_products == pytest.approx(1.5 * part)

    linearized((2, 1), (FOUR, "squared"), check)


def test_subsets_are_the_same_on_all_ranks_and_a_cycle_has_every_sample_once():
    def run(comm):
        objective = on_grid(comm, (2, 1))
        return [objective.subset(objective.full_batch, 4, number).indices.tolist() for number in range(3)]

    one, other = on_ranks(2, run)
    assert one == other
    assert sorted(index for subset in one for index in subset) == list(range(SAMPLES))
