"""The objective over R ranks equals that of one rank with all samples."""

from __future__ import annotations

import math

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.data.batches import BatchPlan
from hpcopt.errors import HpcoptError, UsageError
from hpcopt.layout.block import block
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Batch
from hpcopt.solvers.sgd import SGD
from hpcopt.train.agreement import check_agreement
from hpcopt.train.evaluation import Evaluator
from hpcopt.train.minimize import minimize
from hpcopt.train.sampler import Sampler
from tests.support.problems import FEATURES, samples, sharded, small_network

pytestmark = pytest.mark.mpi


def assert_same(ours: tuple[float, torch.Tensor], theirs: tuple[float, torch.Tensor]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-13)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
@pytest.mark.parametrize("count", [37, 4, 64])
def test_full_batch_values_gradients_and_products_do_not_depend_on_the_ranks(
    comm: Communicator, alone: Communicator, loss: str, count: int
) -> None:
    ours, theirs = (sharded(c, loss, count=count, weight_decay=0.1) for c in (comm, alone))
    w = theirs.initial_vector() + 0.1
    assert_same(ours.value_and_gradient(w, ours.full_batch), theirs.value_and_gradient(w, theirs.full_batch))
    assert ours.value(w, ours.full_batch) == pytest.approx(theirs.value(w, theirs.full_batch), rel=1e-13)
    products = [o.linearize(w, o.full_batch).gauss_newton(w) for o in (ours, theirs)]
    torch.testing.assert_close(*products, rtol=1e-11, atol=1e-14)


def test_mini_batches_do_not_depend_on_the_ranks(comm: Communicator, alone: Communicator) -> None:
    ours, theirs = sharded(comm), sharded(alone)
    w = theirs.initial_vector()
    pairs = []
    for objective, group in ((ours, comm), (theirs, alone)):
        start, count = block(37, group.size, group.rank)[:2]
        sampler = Sampler(BatchPlan(37, start, count, 10, seed=3, overlap=0.25), torch.device("cpu"))
        batches = sampler.begin()
        pairs.append([objective.value_and_gradient(w, batches.next()) for _ in range(9)])
    for one, other in zip(*pairs, strict=True):
        assert_same(one, other)


def test_a_rank_without_samples_takes_part(comm: Communicator, alone: Communicator) -> None:
    inputs, targets = samples()
    mine = slice(None) if comm.rank == comm.size - 1 else slice(0, 0)
    ours = DataParallelObjective(small_network(), "cross_entropy", inputs[mine], targets[mine], comm)
    theirs = sharded(alone)
    w = theirs.initial_vector()
    assert_same(ours.value_and_gradient(w, ours.full_batch), theirs.value_and_gradient(w, theirs.full_batch))
    product = ours.linearize(w, ours.full_batch).gauss_newton(w)
    torch.testing.assert_close(product, theirs.linearize(w, theirs.full_batch).gauss_newton(w), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bucket_bytes", [1, 100, 10**9])
def test_buckets_that_overlap_with_the_backward_pass_give_the_same_gradient(
    comm: Communicator, dtype: torch.dtype, bucket_bytes: int
) -> None:
    inputs, targets = samples()
    start, count = block(37, comm.size, comm.rank)[:2]
    mine = slice(start, start + count)

    def build(size: int) -> DataParallelObjective:
        model = small_network().to(dtype)
        model.register_parameter("unused", torch.nn.Parameter(torch.ones(5, dtype=dtype)))
        return DataParallelObjective(model, "cross_entropy", inputs[mine], targets[mine], comm, bucket_bytes=size)

    bucketed, whole = build(bucket_bytes), build(10**9)
    w = whole.initial_vector()
    for _ in range(2):
        value, gradient = bucketed.value_and_gradient(w, bucketed.full_batch)
        expected, expected_gradient = whole.value_and_gradient(w, whole.full_batch)
        assert value == expected
        torch.testing.assert_close(gradient, expected_gradient)


def test_a_gradient_costs_one_reduction_and_a_value_one_of_scalars(comm: Communicator) -> None:
    objective = sharded(comm)
    w = objective.initial_vector()
    before = objective.comm.ledger.totals()
    objective.value_and_gradient(w, objective.full_batch)
    between = objective.comm.ledger.totals()
    objective.value(w, objective.full_batch)
    after = objective.comm.ledger.totals()
    assert (between.calls - before.calls, between.bytes - before.bytes) == (1, 8 * (objective.size + 2))
    assert (after.calls - between.calls, after.bytes - between.bytes) == (1, 16)


def test_the_local_part_never_communicates_and_its_weighted_mean_is_the_whole(comm: Communicator) -> None:
    objective = sharded(comm)
    w = objective.initial_vector() + 0.1
    calls = comm.ledger.totals().calls
    value, gradient = objective.local.value_and_gradient(w, objective.full_batch)
    assert objective.local.value(w, objective.full_batch) == pytest.approx(value, rel=1e-14)
    assert comm.ledger.totals().calls == calls
    share = objective.full_batch.count / objective.samples
    mean = comm.allreduce(torch.cat([gradient * share, torch.tensor([value * share], dtype=w.dtype)]))
    expected, expected_gradient = objective.value_and_gradient(w, objective.full_batch)
    assert float(mean[-1]) == pytest.approx(expected, rel=1e-13)
    torch.testing.assert_close(mean[:-1], expected_gradient, rtol=1e-11, atol=1e-14)


def test_a_number_that_is_not_finite_on_one_rank_is_seen_by_all(comm: Communicator) -> None:
    inputs, targets = samples(count=4 * comm.size)
    mine = slice(4 * comm.rank, 4 * comm.rank + 4)
    inputs = inputs[mine].clone()
    if comm.rank == comm.size - 1:
        inputs[1, 2] = math.nan
    for dtype in (torch.float32, torch.float64):
        objective = DataParallelObjective(small_network().to(dtype), "cross_entropy", inputs, targets[mine], comm)
        w = objective.initial_vector()
        assert math.isnan(objective.value(w, objective.full_batch))
        value, gradient = objective.value_and_gradient(w, objective.full_batch)
        assert math.isnan(value)
        assert not bool(gradient.isfinite().all())


def test_a_model_whose_numbers_differ_between_ranks_is_made_the_same_also_where_it_is_not_trained(
    comm: Communicator, alone: Communicator
) -> None:
    def build(seed: int) -> torch.nn.Sequential:
        model = small_network(seed)
        model[0].requires_grad_(False)
        model.register_buffer("shift", torch.rand(3))
        model.register_buffer("mask", torch.rand(50) < 0.5)
        return model

    ours, theirs = sharded(comm, model=build(comm.rank)), sharded(alone, model=build(0))
    w = theirs.initial_vector()
    assert torch.equal(ours.initial_vector(), w)
    for one, other in zip(ours.model.tensors().values(), theirs.model.tensors().values(), strict=True):
        assert torch.equal(one, other)  # type: ignore[arg-type]
    assert_same(ours.value_and_gradient(w, ours.full_batch), theirs.value_and_gradient(w, theirs.full_batch))


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("different", ["width", "buffer"])
def test_models_of_different_forms_are_refused_on_all_ranks(comm: Communicator, different: str) -> None:
    model, last = small_network(), comm.rank == comm.size - 1
    if different == "width" and last:
        model = torch.nn.Sequential(torch.nn.Linear(FEATURES, 8), torch.nn.Linear(8, 3)).double()
    if different == "buffer":
        model.register_buffer("table", torch.zeros(4 if last else 5))
    with pytest.raises(UsageError, match="the ranks were given different models"):
        sharded(comm, model=model)


def test_data_that_do_not_fit_on_one_rank_are_refused_on_all_with_the_rank_named(comm: Communicator) -> None:
    inputs, targets = samples(count=4 * comm.size)
    width = FEATURES - 1 if comm.rank == comm.size - 1 else FEATURES
    mine = slice(4 * comm.rank, 4 * comm.rank + 4)
    with pytest.raises(UsageError, match=r"does not take a sample of shape \(4,\)"):
        DataParallelObjective(small_network(), "cross_entropy", inputs[mine, :width], targets[mine], comm)


def test_running_statistics_are_averaged_over_the_ranks(comm: Communicator) -> None:
    model = small_network(batch_norm=True)
    objective = sharded(comm, model=model)
    objective.value_and_gradient(objective.initial_vector(), Batch(None, len(objective.shard.inputs), 37))
    mine = model[2].running_mean.clone()
    mean = comm.allreduce(mine.clone()) / comm.size
    objective.model.synchronize_buffers()
    torch.testing.assert_close(model[2].running_mean, mean)


def test_agree_gives_all_ranks_the_numbers_of_the_first(comm: Communicator) -> None:
    objective = sharded(comm)
    assert objective.agree(comm.rank + 0.5, -comm.rank) == (0.5, 0)


def test_a_flag_raised_on_one_rank_reaches_all_with_the_next_evaluation(comm: Communicator) -> None:
    for dtype in (torch.float32, torch.float64):
        objective = sharded(comm, model=small_network().to(dtype))
        objective.flag = 1.0 if comm.rank == comm.size - 1 else 0.0
        w = objective.initial_vector()
        objective.value_and_gradient(w, objective.full_batch)
        assert objective.flags_seen == 1
        objective.value(w, objective.full_batch)
        assert objective.flags_seen == 2


def test_weight_decay_is_added_before_the_reduction_so_that_all_ranks_hold_one_loss(comm: Communicator) -> None:
    objective = sharded(comm, weight_decay=0.1)
    w = objective.initial_vector() * (1 + 1e-15 * comm.rank)
    for value in (objective.value(w, objective.full_batch), objective.value_and_gradient(w, objective.full_batch)[0]):
        assert comm.allgather_objects(value) == [value] * comm.size


def test_a_test_set_on_some_ranks_only_is_refused_on_all(comm: Communicator) -> None:
    if comm.size == 1:
        pytest.skip("needs two ranks")
    objective = sharded(comm)
    test = (objective.shard.inputs, objective.shard.targets) if comm.rank == 0 else None
    with pytest.raises(UsageError, match="was given no test set"):
        Evaluator(objective, test)


@pytest.mark.mpi(min_size=2)
def test_an_accuracy_to_reach_without_a_test_set_on_some_ranks_is_refused_on_all(comm: Communicator) -> None:
    """Before any of them begins to evaluate and waits for the others."""
    objective = sharded(comm)
    test = (objective.shard.inputs, objective.shard.targets) if comm.rank == 0 else None
    with pytest.raises(UsageError, match="can never be reached without a test set"):
        minimize(objective, SGD(), epochs=1, test=test, test_accuracy=0.5)


def test_variables_that_differ_between_ranks_are_found_out(comm: Communicator) -> None:
    check_agreement(comm, torch.ones(5), 3)
    if comm.size > 1:
        with pytest.raises(HpcoptError, match="after iteration 3"):
            check_agreement(comm, torch.full((5,), float(comm.rank == 1)), 3)
