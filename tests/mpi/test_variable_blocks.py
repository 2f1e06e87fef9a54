"""The objective on every grid of the job's ranks equals that of one rank with all samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Batch, Vector
from hpcopt.objective.variable_blocks import VariableBlockObjective
from hpcopt.train.evaluation import Evaluator
from hpcopt.train.minimize import plan_batches
from hpcopt.train.sampler import Sampler
from tests.support.grids import deep_network, divides, mini_batches, on_grid
from tests.support.problems import SAMPLES, samples, sharded, small_network

pytestmark = pytest.mark.mpi


@pytest.fixture(params=[1, 2, 3, 4])
def shards(request: pytest.FixtureRequest, comm: Communicator) -> int:
    divides(comm, request.param)
    return int(request.param)


def whole(alone: Communicator, loss: str = "cross_entropy", count: int = SAMPLES, **options: Any) -> Any:
    """One rank with all samples."""
    return sharded(alone, loss, deep_network(), count, **options)


def batches_of(objective: DataParallelObjective, size: int | None) -> list[Batch]:
    """Three batches that are the same whatever the layout; the full one for None."""
    if size is None:
        return [objective.full_batch]
    sequence = Sampler(plan_batches(objective, size, 0.25, 3), torch.device("cpu")).begin()
    return [sequence.next() for _ in range(3)]


def group_batch(objective: VariableBlockObjective, batch: Batch) -> list[int]:
    """Numbers in the whole set of the samples that this row holds of a batch."""
    given = objective.comm.allgather_objects(len(objective.shard.inputs))
    first = sum(given[: objective.comm.rank : objective.grid.columns][: objective.comm.rank // objective.grid.columns])
    held = range(batch.count) if batch.indices is None else batch.indices.tolist()
    return [first + index for index in held]


def same_bits(comm: Communicator, *numbers: float | Vector) -> bool:
    """Whether all ranks hold the same."""
    flat = torch.cat([torch.as_tensor(number, dtype=torch.float64).reshape(-1) for number in numbers])
    return comm.allgather_objects(flat.tolist()) == [flat.tolist()] * comm.size


@pytest.mark.parametrize(
    ("loss", "count", "size", "micro_batch"),
    [
        ("cross_entropy", 37, None, None),
        ("cross_entropy", 37, 10, 3),
        ("cross_entropy", 37, 2, None),
        ("squared", 4, None, None),
        ("squared", 64, 7, None),
        ("squared", 37, None, 3),
    ],
)
def test_values_and_gradients_are_those_of_one_rank(
    comm: Communicator,
    alone: Communicator,
    shards: int,
    loss: str,
    count: int,
    size: int | None,
    micro_batch: int | None,
) -> None:
    ours = on_grid(comm, shards, loss, count=count, weight_decay=0.1, micro_batch=micro_batch)
    theirs = whole(alone, loss, count, weight_decay=0.1)
    w = theirs.initial_vector() + 0.1
    for mine, all_of_it in zip(batches_of(ours, size), batches_of(theirs, size), strict=True):
        expected, gradient = theirs.value_and_gradient(w, all_of_it)
        for found in (ours.value_and_gradient(w, mine), ours.value_and_gradients(w, mine)[:2]):
            assert found[0] == pytest.approx(expected, rel=1e-13)
            torch.testing.assert_close(found[1], gradient, rtol=1e-11, atol=1e-14)
        assert ours.value(w, mine) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("size", [None, 10, 2])
def test_the_group_s_part_is_that_of_its_samples_alone(
    comm: Communicator, alone: Communicator, shards: int, size: int | None
) -> None:
    ours, theirs = on_grid(comm, shards, weight_decay=0.1), whole(alone, weight_decay=0.1)
    w = theirs.initial_vector() + 0.1
    for batch in batches_of(ours, size):
        _, _, loss, gradient = ours.value_and_gradients(w, batch)
        held = torch.tensor(group_batch(ours, batch), dtype=torch.int64)
        expected, whole_gradient = theirs.local.value_and_gradient(w, Batch(held, len(held), max(len(held), 1)))
        assert loss == pytest.approx(expected, rel=1e-13)
        torch.testing.assert_close(gradient, whole_gradient, rtol=1e-11, atol=1e-14)
        assert ours.share(batch) == len(held) / batch.total


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [None, 10])
def test_all_ranks_hold_the_same_bits(comm: Communicator, shards: int, dtype: torch.dtype, size: int | None) -> None:
    objective = on_grid(comm, shards, dtype=dtype, weight_decay=0.1)
    w = objective.initial_vector()
    for batch in batches_of(objective, size):
        value, gradient, own, own_gradient = objective.value_and_gradients(w, batch)
        assert same_bits(comm, value, gradient)
        row = comm.split(objective.grid.coordinates(comm.rank)[0])
        assert same_bits(row, own, own_gradient)
        row.free()
        if dtype == torch.float32:  # there the loss is summed exactly
            assert value - objective.value_and_gradient(w, batch)[0] == pytest.approx(0, abs=1e-15)


@pytest.mark.mpi(min_size=4)
def test_columns_that_add_in_different_orders_do_not_give_ranks_different_bits(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    if comm.size != 4:
        pytest.skip("needs a grid of 2 x 2")
    objective = on_grid(comm, 2, weight_decay=0.1)
    plain = objective._columns.allreduce
    column = comm.rank % 2

    def rounded_otherwise(buffer: Vector, **keys: Any) -> Vector:
        return plain(buffer, **keys).mul_(1 + column * torch.finfo(buffer.dtype).eps)

    monkeypatch.setattr(objective._columns, "allreduce", rounded_otherwise)
    assert same_bits(comm, *objective.value_and_gradients(objective.initial_vector(), objective.full_batch)[:2])


def test_the_groups_by_their_shares_sum_to_the_whole(comm: Communicator, shards: int) -> None:
    objective = on_grid(comm, shards, weight_decay=0.1)
    w, columns = objective.initial_vector(), objective.grid.columns
    for batch in batches_of(objective, 10):
        value, gradient, own, own_gradient = objective.value_and_gradients(w, batch)
        part = objective.share(batch) / columns
        summed, (loss, one), _ = objective.combine(part * own_gradient, (part * own, part))
        assert (loss, one) == (pytest.approx(value, rel=1e-13), pytest.approx(1, rel=1e-14))
        torch.testing.assert_close(summed, gradient, rtol=1e-11, atol=1e-14)


# Batch normalisation refuses a piece of one sample, which small pieces may have.
@pytest.mark.parametrize(
    ("options", "micro_batch"),
    [({}, None), ({}, 3), ({"dropout": 0.5}, None), ({"dropout": 0.5}, 3), ({"batch_norm": True}, None)],
    ids=str,
)
@pytest.mark.parametrize("size", [None, 16])
def test_a_local_phase_begins_at_the_group_s_loss_and_gradient(
    comm: Communicator, shards: int, options: dict[str, Any], size: int | None, micro_batch: int | None
) -> None:
    model = deep_network(**options)
    decay_norms = "batch_norm" not in options
    objective = on_grid(comm, shards, model=model, weight_decay=0.1, decay_norms=decay_norms, micro_batch=micro_batch)
    w, local = objective.initial_vector(), objective.local
    for batch in batches_of(objective, size):
        _, _, own, own_gradient = objective.value_and_gradients(w, batch)
        calls = comm.ledger.totals().calls
        local.begin(w)
        value, gradient = local.value_and_gradient(local.take(w), batch)
        local.end()
        assert comm.ledger.totals().calls == calls
        assert value == pytest.approx(own, rel=1e-12)
        torch.testing.assert_close(gradient, local.take(own_gradient), rtol=1e-10, atol=1e-13)


def test_the_blocks_of_a_row_are_all_variables_once(comm: Communicator, shards: int) -> None:
    objective = on_grid(comm, shards)
    ones = torch.ones(objective.size, dtype=torch.float64)
    covered, _, _ = objective.combine(objective.local.put(objective.local.take(ones)), ())
    assert torch.equal(covered, shards * ones)
    sizes = objective.layout["block_sizes"]
    assert sum(sizes) == objective.size
    columns = comm.size // shards
    assert objective.blocks == [rank % columns for rank in range(comm.size)]
    assert len(objective.local.take(ones)) == sizes[comm.rank % columns]


def test_products_with_the_gauss_newton_matrix_are_those_of_one_rank(
    comm: Communicator, alone: Communicator, shards: int
) -> None:
    ours, theirs = on_grid(comm, shards, weight_decay=0.1), whole(alone, weight_decay=0.1)
    w = theirs.initial_vector() + 0.1
    for mine, all_of_it in zip(batches_of(ours, 10), batches_of(theirs, 10), strict=True):
        product = ours.linearize(w, mine).gauss_newton(w)
        torch.testing.assert_close(product, theirs.linearize(w, all_of_it).gauss_newton(w), rtol=1e-11, atol=1e-14)


def test_no_sample_is_evaluated_or_counted_twice(comm: Communicator, alone: Communicator, shards: int) -> None:
    objective, seen = on_grid(comm, shards), [0]
    objective.shard.module.register_forward_hook(lambda _, inputs, __: seen.__setitem__(0, seen[0] + len(inputs[0])))
    w, full = objective.initial_vector(), objective.full_batch
    objective.value(w, full)
    objective.value_and_gradient(w, full)
    objective.value_and_gradients(w, full)
    assert comm.reduce_scalars([seen[0]])[0] == 3 * SAMPLES
    assert (objective.work.values, objective.work.gradients) == (1, 2)
    assert objective.samples == SAMPLES
    inputs, targets = samples()
    test = (inputs[comm.rank :: comm.size], targets[comm.rank :: comm.size])
    metrics = Evaluator(objective, test)(w)
    expected = Evaluator(whole(alone), (inputs, targets))(w)
    assert metrics.train_loss == pytest.approx(expected.train_loss, rel=1e-14)
    assert metrics.train_accuracy == expected.train_accuracy
    assert metrics.test_loss == pytest.approx(expected.test_loss, rel=1e-14)


def test_an_evaluation_sends_one_vector_and_with_the_part_of_its_row_two_at_most(
    comm: Communicator, shards: int
) -> None:
    objective = on_grid(comm, shards)
    w, columns = objective.initial_vector(), comm.size // shards
    comm.ledger.clear()
    objective.value_and_gradient(w, objective.full_batch)
    long = 8 * (objective.size + 2)
    assert [(row.label, row.calls, row.bytes) for row in comm.ledger.rows()] == [("gradient", 1, long)]
    comm.ledger.clear()
    objective.value_and_gradients(w, objective.full_batch)
    (row,) = comm.ledger.rows()
    both = shards > 1 and columns > 1
    assert (row.label, row.calls) == ("gradient", 3 if both else 1)
    assert row.bytes <= 2 * long + 8 * (objective.size // columns + 3) if both else row.bytes == long


def test_a_flag_raised_on_one_rank_reaches_all(comm: Communicator, shards: int) -> None:
    for dtype in (torch.float32, torch.float64):
        objective = on_grid(comm, shards, dtype=dtype)
        objective.flag = 1.0 if comm.rank == comm.size - 1 else 0.0
        objective.value_and_gradients(objective.initial_vector(), objective.full_batch)
        assert objective.flags_seen == 1


def test_one_column_is_the_layout_by_samples_bit_for_bit(comm: Communicator) -> None:
    ours, theirs = on_grid(comm, comm.size, weight_decay=0.1), sharded(comm, model=deep_network(), weight_decay=0.1)
    w = theirs.initial_vector()
    for mine, same in zip(mini_batches(ours, 10, 3), batches_of(theirs, 10), strict=True):
        for one, other in zip(ours.value_and_gradients(w, mine), theirs.value_and_gradients(w, same), strict=True):
            assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


@pytest.mark.mpi(min_size=2)
def test_ranks_of_a_row_with_different_samples_are_refused_on_all_ranks(comm: Communicator) -> None:
    inputs, targets = samples(count=4 * comm.size)
    mine = slice(4 * comm.rank, 4 * comm.rank + 4)
    with pytest.raises(UsageError, match=r"rank 0 and rank 1 are to share the samples of shard 0.*\(4 and 4 of them\)"):
        VariableBlockObjective(deep_network(), "cross_entropy", inputs[mine], targets[mine], comm)
    targets = targets.clone()
    targets[0] += comm.rank == 1
    with pytest.raises(UsageError, match="hold different"):
        VariableBlockObjective(deep_network(), "cross_entropy", inputs, targets % 3, comm)


@pytest.mark.mpi(min_size=2)
def test_shards_that_do_not_divide_the_ranks_are_refused_on_all_ranks(comm: Communicator) -> None:
    inputs, targets = samples()
    with pytest.raises(UsageError, match=f"shards = {comm.size + 1} does not fit {comm.size} ranks"):
        VariableBlockObjective(deep_network(), "cross_entropy", inputs, targets, comm, shards=comm.size + 1)


@pytest.mark.mpi(min_size=3)
def test_a_model_with_too_few_modules_is_refused_on_all_ranks(comm: Communicator) -> None:
    inputs, targets = samples()
    with pytest.raises(UsageError, match=r"form 2 groups.*0 \(42 numbers\), 2 \(24 numbers\)"):
        VariableBlockObjective(small_network(), "cross_entropy", inputs, targets, comm)


def test_a_tensor_of_two_modules_is_of_the_first(comm: Communicator) -> None:
    network = deep_network()
    network.append(torch.nn.Linear(3, 3).double()).append(torch.nn.Linear(3, 3).double())
    network[-1].weight = network[-2].weight
    inputs, targets = samples()
    objective = VariableBlockObjective(network, "cross_entropy", inputs, targets, comm)
    ones = torch.ones(objective.size, dtype=torch.float64)
    covered, _, _ = objective.combine(objective.local.put(objective.local.take(ones)), ())
    assert torch.equal(covered, ones)
