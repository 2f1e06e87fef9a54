"""APTS on the ranks of one job: the identities of the method, its messages, and what one rank alone may suffer."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from mpi4py import MPI

from hpcopt.comm.communicator import Communicator
from hpcopt.layout.block import block
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.local import LocalObjective
from hpcopt.objective.protocol import Batch, Vector
from hpcopt.solvers.apts import APTS
from hpcopt.solvers.fixed_batch import WHOLE
from hpcopt.solvers.local_solve import Anchor, ConsistentObjective
from hpcopt.solvers.solver import State, StepReport
from hpcopt.solvers.trust_region import TrustRegion
from hpcopt.train.minimize import minimize
from tests.support import closures
from tests.support.closures import same_everywhere
from tests.support.problems import samples, sharded, small_network

pytestmark = pytest.mark.mpi

SOLVERS = ["lbfgs", "lsr1", "first_order", "adam"]


def unequal(comm: Communicator) -> DataParallelObjective:
    """Rank d holds the d-th part of the samples, in parts that grow as 1, 2, 3, ..."""
    return DataParallelObjective(small_network(), "cross_entropy", *closures.unequal(comm), comm, weight_decay=0.01)


def mini_batch(objective: DataParallelObjective, number: int, total: int = 12) -> Batch:
    """``total`` consecutive samples of the whole set, wherever they lie; most ranks have none of them."""
    counts = objective.comm.allgather_objects(len(objective.shard.inputs))
    start = sum(counts[: objective.comm.rank])
    wanted = {(number * total + k) % sum(counts) for k in range(total)}
    mine = torch.tensor(
        sorted(i - start for i in wanted if 0 <= i - start < counts[objective.comm.rank]), dtype=torch.int64
    )
    return Batch(mine, len(mine), total, (0, number))


def steps(
    solver: APTS, objective: DataParallelObjective, count: int, total: int | None = None
) -> tuple[State, list[StepReport]]:
    """``count`` iterations on the full batch or on mini-batches of ``total`` samples."""
    state, reports = solver.init(objective), []
    for number in range(count):
        batch = objective.full_batch if total is None else mini_batch(objective, number, total)
        state, report = solver.step(objective, state, batch)
        reports.append(report)
    return state, reports


def anchor(objective: DataParallelObjective, batch: Batch) -> tuple[Anchor, float]:
    """What is known at the start, and the loss there."""
    w = objective.initial_vector()
    loss, gradient, own_loss, own_gradient = objective.value_and_gradients(w, batch)
    return Anchor(w, gradient, objective.dot(gradient, gradient), own_loss, own_gradient), loss


@pytest.mark.parametrize("total", [None, 12])
def test_the_first_local_gradient_is_the_global_one_on_every_rank(comm: Communicator, total: int | None) -> None:
    objective = unequal(comm)
    batch = objective.full_batch if total is None else mini_batch(objective, 0, total)
    start, _ = anchor(objective, batch)
    problem = ConsistentObjective(objective.local, batch, start, "full")
    loss, gradient = problem.value_and_gradient(start.point, WHOLE)
    torch.testing.assert_close(gradient, start.gradient, rtol=1e-14, atol=1e-15)
    assert loss == pytest.approx(start.own_loss, rel=1e-14)


def test_the_local_parts_sum_to_the_whole_by_their_shares(comm: Communicator) -> None:
    objective = unequal(comm)
    start, loss = anchor(objective, objective.full_batch)
    share = objective.share(objective.full_batch)
    gradient, (value, whole), told = objective.combine(
        share * start.own_gradient, (share * start.own_loss, share), (objective.comm.rank + 1, share)
    )
    assert whole == pytest.approx(1.0, rel=1e-15)
    assert told[:, 0].tolist() == list(range(1, comm.size + 1))
    assert float(told[:, 1].sum()) == pytest.approx(1.0, rel=1e-15)
    assert value == pytest.approx(loss, rel=1e-14)
    torch.testing.assert_close(gradient, start.gradient, rtol=1e-13, atol=1e-15)


def test_a_local_gradient_is_that_of_the_local_samples_alone(comm: Communicator) -> None:
    objective = unequal(comm)
    start, _ = anchor(objective, objective.full_batch)
    loss, gradient = objective.local.value_and_gradient(start.point, objective.full_batch)
    assert start.own_loss == pytest.approx(loss, rel=1e-14)
    torch.testing.assert_close(start.own_gradient, gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("model", ["lbfgs", "lsr1", "first_order"])
def test_on_one_rank_one_local_trial_is_a_step_of_the_trust_region_method(model: str) -> None:
    alone = Communicator(MPI.COMM_SELF)
    ours, theirs = sharded(alone), sharded(alone)
    apts = APTS(local_solver=model, local_iterations=1, global_iterations=0, local_start=1.0)
    trust_region = TrustRegion(model=model, **({} if model == "first_order" else {"memory": apts.local_memory}))
    state, other = apts.init(ours), trust_region.init(theirs)
    for _ in range(12):
        state["step_radius"] = other["radius"]
        state, report = apts.step(ours, state, ours.full_batch)
        other, expected = trust_region.step(theirs, other, theirs.full_batch)
        torch.testing.assert_close(state["parameters"], other["parameters"], rtol=1e-12, atol=1e-13)
        assert report.accepted == expected.accepted


@pytest.mark.parametrize("solver", SOLVERS)
def test_on_one_rank_the_correction_changes_nothing(solver: str) -> None:
    alone = Communicator(MPI.COMM_SELF)
    ends = [
        steps(APTS(local_solver=solver, consistency=consistency), sharded(alone), 6)[0]["parameters"]
        for consistency in ("full", "none")
    ]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-10, atol=1e-12)


def test_one_local_step_each_summed_is_one_global_step(comm: Communicator) -> None:
    objective, radius = unequal(comm), 1e-2
    apts = APTS(
        combination="sum",
        local_solver="first_order",
        local_iterations=1,
        local_start=1.0,
        global_iterations=0,
        radius_initial=radius,
    )
    state, report = steps(apts, objective, 1)
    trust_region = TrustRegion(model="first_order", radius_initial=radius)
    whole = unequal(comm)
    expected, _ = trust_region.step(whole, trust_region.init(whole), whole.full_batch)
    assert report[0].accepted
    torch.testing.assert_close(state["parameters"], expected["parameters"], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("combination", ["mean", "sum"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_ratio_goes_to_one_with_the_radius(comm: Communicator, solver: str, combination: str) -> None:
    distances = []
    for radius in (1e-2, 1e-4):
        apts = APTS(local_solver=solver, combination=combination, radius_initial=radius, global_iterations=0)
        _, reports = steps(apts, unequal(comm), 1)
        distances.append(abs(reports[0].rho - 1))
    assert distances[1] < 1e-3
    assert distances[1] <= distances[0] + 1e-9


@pytest.mark.parametrize("total", [None, 12])
@pytest.mark.parametrize("combination", ["mean", "sum"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_all_ranks_hold_the_same_bits_and_the_loss_falls(
    comm: Communicator, solver: str, combination: str, total: int | None
) -> None:
    objective = unequal(comm)
    start = objective.value(objective.initial_vector(), objective.full_batch)
    # So few samples of noise teach nothing about others: only a cautious radius brings the loss of all of them down.
    method = APTS(local_solver=solver, combination=combination, next_shrink_below=0.1)
    state, reports = steps(method, objective, 15, total)
    assert same_everywhere(comm, state["parameters"])  # type: ignore[arg-type]
    numbers = [float(value) for report in reports for value in (report.loss, report.radius, report.predicted)]
    assert same_everywhere(comm, torch.tensor(numbers, dtype=torch.float64).nan_to_num())
    assert objective.value(state["parameters"], objective.full_batch) < (0.8 if total is None else 0.95) * start  # type: ignore[arg-type]


def test_a_full_batch_loss_never_rises(comm: Communicator) -> None:
    _, reports = steps(APTS(), unequal(comm), 20)
    for before, after in pairwise(reports):
        assert before.loss_after <= before.loss
        assert after.loss == before.loss_after


def long_calls(comm: Communicator, size: int) -> int:
    """Reductions of at least ``size`` numbers booked so far."""
    return sum(row.calls for row in comm.ledger.rows() if row.label in ("gradient", "step"))


@pytest.mark.parametrize("trials", [0, 1, 2])
@pytest.mark.parametrize("total", [None, 12])
def test_the_messages_are_those_of_the_closed_form(comm: Communicator, trials: int, total: int | None) -> None:
    objective = unequal(comm)
    solver = APTS(global_iterations=trials)
    state = solver.init(objective)
    for number in range(6):
        comm.ledger.clear()
        batch = objective.full_batch if total is None else mini_batch(objective, number, total)
        state, _ = solver.step(objective, state, batch)
        first = number == 0 or total is not None
        assert long_calls(comm, objective.size) == 2 + trials + first
        calls = {row.label: row.calls for row in comm.ledger.rows()}
        assert calls["step"] == 1
        assert calls.get("value", 0) == (total is not None and number > 0)


def test_the_local_phase_sends_nothing(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, booked = unequal(comm), []
    plain = LocalObjective.value_and_gradient

    def watched(self: LocalObjective, w: Vector, batch: Batch) -> tuple[float, Vector]:
        booked.append(comm.ledger.totals().calls)
        return plain(self, w, batch)

    monkeypatch.setattr(LocalObjective, "value_and_gradient", watched)
    steps(APTS(), objective, 1)
    assert len(booked) >= 2
    assert len(set(booked)) == 1


def test_local_work_is_counted_on_all_ranks(comm: Communicator) -> None:
    objective = sharded(comm, count=12 * comm.size)
    _, reports = steps(APTS(), objective, 3)
    trials = sum(report.inner_iterations for report in reports) / comm.size
    assert objective.work.gradients == pytest.approx(1 + trials + 2 * 3, rel=1e-12)
    assert same_everywhere(comm, torch.tensor([objective.work.gradients], dtype=torch.float64))


def test_a_batch_of_fewer_samples_than_ranks_makes_a_step(comm: Communicator) -> None:
    objective = unequal(comm)
    state, reports = steps(APTS(), objective, 8, 1)
    assert any(report.accepted for report in reports)
    assert same_everywhere(comm, state["parameters"])  # type: ignore[arg-type]


def test_ranks_without_any_sample_take_part(comm: Communicator) -> None:
    inputs, targets = samples()
    first = block(len(inputs), 1, 0)
    mine = slice(first[0], first[0] + first[1]) if comm.rank == comm.size - 1 else slice(0, 0)
    objective = DataParallelObjective(small_network(), "cross_entropy", inputs[mine], targets[mine], comm)
    alone = sharded(Communicator(MPI.COMM_SELF))
    for combination in ("mean", "sum"):
        state, _ = steps(APTS(combination=combination), objective, 8)
        expected, _ = steps(APTS(combination=combination), alone, 8)
        torch.testing.assert_close(state["parameters"], expected["parameters"], rtol=1e-9, atol=1e-10)


def test_float32_scalars_are_exact(comm: Communicator) -> None:
    inputs, targets = samples()
    network = small_network().float()
    objective = DataParallelObjective(network, "cross_entropy", inputs.float(), targets, comm)
    vector = torch.full((objective.size,), 0.5)
    summed, (third,), _ = objective.combine(vector, (1 / 3,))
    assert summed.dtype == torch.float32
    assert bool((summed == 0.5 * comm.size).all())
    assert third == pytest.approx(comm.size / 3, rel=1e-15)


def test_a_run_by_the_loop_goes_down_and_ends_alike_on_all_ranks(comm: Communicator) -> None:
    result = minimize(unequal(comm), APTS(), epochs=5, batch=12)
    assert result.final.train_loss < result.initial.train_loss
    assert same_everywhere(comm, result.parameters)


def test_presets_are_what_they_say(comm: Communicator) -> None:
    paper = APTS(**APTS.PRESETS["paper"])
    assert paper != APTS()
    state, _ = steps(paper, unequal(comm), 5)
    assert same_everywhere(comm, state["parameters"])  # type: ignore[arg-type]
