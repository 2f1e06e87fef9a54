"""APTS with the variables divided among the ranks: its identities, its messages and its runs, on every grid."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from mpi4py import MPI

from hpcopt.analysis.history import open_run
from hpcopt.comm.communicator import Communicator
from hpcopt.config import parse_job
from hpcopt.errors import UsageError
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Vector
from hpcopt.objective.variable_blocks import VariableBlockObjective
from hpcopt.solvers.apts import APTS
from hpcopt.solvers.local_solve import Combined, LocalPhase
from hpcopt.solvers.solver import State, StepReport
from hpcopt.train.job import PreparedJob
from hpcopt.train.minimize import minimize
from tests.support.closures import same_everywhere
from tests.support.grids import deep_network, divides, mini_batches, on_grid
from tests.support.problems import sharded

pytestmark = pytest.mark.mpi

JOB = """
[run]
epochs = 2
precision = "float64"
device = "cpu"
[data]
source = "digits"
limit = 300
batch = 100
test = 0.2
[model]
widths = [12, 11, 10]
[solver]
name = "apts"
[parallel]
layout = "variables"
"""


@pytest.fixture(params=[1, 2, 3, 4])
def shards(request: pytest.FixtureRequest, comm: Communicator) -> int:
    divides(comm, request.param)
    return int(request.param)


def steps(
    solver: APTS, objective: VariableBlockObjective, count: int, size: int | None = None
) -> tuple[State, list[StepReport]]:
    """``count`` iterations on the full batch or on mini-batches."""
    state, reports = solver.init(objective), []
    for batch in [objective.full_batch] * count if size is None else mini_batches(objective, size, count):
        state, report = solver.step(objective, state, batch)
        reports.append(report)
    return state, reports


def losses(objective: DataParallelObjective, batch: int | str) -> list[float]:
    """The training losses of a run."""
    result = minimize(objective, APTS(), epochs=3, batch=batch)
    return [result.initial.train_loss, result.final.train_loss, *(row["train_loss"] for row in result.history)]


@pytest.mark.parametrize("batch", ["full", 12])
def test_one_column_takes_the_steps_of_the_layout_by_samples(comm: Communicator, batch: int | str) -> None:
    ours = losses(on_grid(comm, comm.size), batch)
    assert ours == pytest.approx(losses(sharded(comm, model=deep_network()), batch), rel=1e-12)


@pytest.mark.parametrize("solver", ["lbfgs", "first_order"])
@pytest.mark.parametrize("size", [None, 12])
def test_with_one_shard_there_is_nothing_to_correct(comm: Communicator, solver: str, size: int | None) -> None:
    ends = [
        steps(APTS(local_solver=solver, consistency=consistency), on_grid(comm, 1, weight_decay=0.01), 3, size)[0]
        for consistency in ("full", "none")
    ]
    torch.testing.assert_close(ends[0]["parameters"], ends[1]["parameters"], rtol=1e-12, atol=1e-14)


def test_the_first_local_gradient_is_the_block_of_the_global_one(
    comm: Communicator, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, seen = on_grid(comm, shards, weight_decay=0.01), []
    plain = LocalPhase._anchor

    def watched(self: LocalPhase, objective: Any, state: State) -> Any:
        anchor = plain(self, objective, state)
        seen.append((anchor, objective.local.take(state["gradient"])))
        return anchor

    monkeypatch.setattr(LocalPhase, "_anchor", watched)
    steps(APTS(), objective, 1)
    ((anchor, block),) = seen
    assert torch.equal(anchor.gradient, block)
    _, own_gradient = objective.local.value_and_gradient(anchor.point, objective.full_batch)
    assert len(own_gradient) == len(block)
    assert (shards == 1) == torch.equal(anchor.gradient, anchor.own_gradient)


@pytest.mark.parametrize("combination", ["mean", "sum"])
def test_no_block_moves_farther_than_the_radius(
    comm: Communicator, shards: int, combination: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, found = on_grid(comm, shards), []
    plain = LocalPhase.run

    def watched(self: LocalPhase, objective: Any, state: State, batch: Any) -> Combined:
        combined = plain(self, objective, state, batch)
        block = float(objective.local.take(combined.step).norm())
        found.append((block, combined.reach, float(state["step_radius"])))  # type: ignore[arg-type]
        return combined

    monkeypatch.setattr(LocalPhase, "run", watched)
    steps(APTS(combination=combination, radius_initial=0.05), objective, 6)
    for block, reach, radius in found:
        assert block <= reach * (1 + 1e-12)
        assert reach <= radius * (1 + 1e-12)
    assert any(reach > 0.5 * radius for _, reach, radius in found)


@pytest.mark.parametrize("combination", ["mean", "sum"])
@pytest.mark.parametrize("size", [None, 12])
def test_all_ranks_hold_the_same_bits_and_the_loss_falls(
    comm: Communicator, shards: int, combination: str, size: int | None
) -> None:
    objective = on_grid(comm, shards)
    start = objective.value(objective.initial_vector(), objective.full_batch)
    # So few samples of noise teach nothing about others: only a cautious radius brings the loss of all of them down.
    state, reports = steps(APTS(combination=combination, next_shrink_below=0.1), objective, 6, size)
    assert same_everywhere(comm, state["parameters"])
    numbers = [float(value) for report in reports for value in (report.loss, report.radius, report.predicted)]
    assert same_everywhere(comm, torch.tensor(numbers, dtype=torch.float64).nan_to_num())
    assert objective.value(state["parameters"], objective.full_batch) < (0.97 if size is None else 1.0) * start  # type: ignore[arg-type]
    if size is None:
        for before, after in pairwise(reports):
            assert before.loss_after <= before.loss
            assert after.loss == before.loss_after


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ratio_goes_to_one_with_the_radius(comm: Communicator, shards: int, dtype: torch.dtype) -> None:
    radius = 1e-4 if dtype == torch.float64 else 1e-2
    _, reports = steps(APTS(radius_initial=radius, global_iterations=0), on_grid(comm, shards, dtype=dtype), 1)
    assert abs(reports[0].rho - 1) < (1e-3 if dtype == torch.float64 else 5e-2)


@pytest.mark.parametrize("trials", [0, 1, 2])
@pytest.mark.parametrize("size", [None, 12])
def test_the_messages_are_those_of_the_closed_form(
    comm: Communicator, shards: int, trials: int, size: int | None
) -> None:
    """Where a step needs the group's own gradient, on a grid it takes three calls instead of one."""
    objective, solver = on_grid(comm, shards), APTS(global_iterations=trials)
    state = solver.init(objective)
    own = 3 if 1 < shards < comm.size else 1
    batches = [objective.full_batch] * 4 if size is None else mini_batches(objective, size, 4)
    for number, batch in enumerate(batches):
        comm.ledger.clear()
        state, _ = solver.step(objective, state, batch)
        calls = {row.label: row.calls for row in comm.ledger.rows()}
        assert calls["step"] == 1
        if size is None:
            assert calls["gradient"] == own * (1 + trials + (number == 0))
        else:
            assert calls["gradient"] == own + 1 + trials


def test_local_work_counts_every_rank_s_whole_evaluations(comm: Communicator, shards: int) -> None:
    objective = on_grid(comm, shards, count=12 * comm.size)
    _, reports = steps(APTS(), objective, 3)
    trials = sum(report.inner_iterations for report in reports) / shards
    assert objective.work.gradients == pytest.approx(1 + trials + 2 * 3, rel=1e-12)


def test_a_batch_of_fewer_samples_than_ranks_makes_a_step(comm: Communicator, shards: int) -> None:
    objective = on_grid(comm, shards)
    state, reports = steps(APTS(), objective, 6, 1)
    assert any(report.accepted for report in reports)
    assert same_everywhere(comm, state["parameters"])


@pytest.mark.parametrize("options", [{"dropout": 0.3}, {"batch_norm": True}], ids=str)
def test_models_that_draw_or_keep_statistics_train(comm: Communicator, shards: int, options: dict[str, Any]) -> None:
    objective = on_grid(comm, shards, model=deep_network(**options), count=64)
    result = minimize(objective, APTS(), epochs=3, batch=32)
    assert result.final.train_loss < result.initial.train_loss
    assert same_everywhere(comm, result.parameters)


def poisoned(plain: Any, left: list[int]) -> Any:
    """A local evaluation whose next results are NaN."""

    def value_and_gradient(x: Vector, batch: Any) -> tuple[float, Vector]:
        loss, gradient = plain(x, batch)
        if left[0] > 0:
            left[0] -= 1
            return float("nan"), gradient.fill_(float("nan"))
        return loss, gradient

    return value_and_gradient


def test_nan_in_one_rank_s_local_phase_costs_that_rank_s_trials_only(
    comm: Communicator, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = on_grid(comm, shards)
    left = [3 if comm.rank == comm.size - 1 else 0]
    monkeypatch.setattr(objective.local, "value_and_gradient", poisoned(objective.local.value_and_gradient, left))
    start = objective.value(objective.initial_vector(), objective.full_batch)
    state, _ = steps(APTS(), objective, 6)
    assert left == [0]
    assert same_everywhere(comm, state["parameters"])
    assert objective.value(state["parameters"], objective.full_batch) < start  # type: ignore[arg-type]


def test_a_job_leaves_a_record_that_counts_every_sample_once(
    comm: Communicator, shards: int, shared_path: Path
) -> None:
    job = parse_job(JOB, [f"parallel.data={shards}"])
    result = PreparedJob(job, comm).run(shared_path / "run")
    alone = PreparedJob(parse_job(JOB), Communicator(MPI.COMM_SELF))
    expected = alone.objective.value(alone.objective.initial_vector(), alone.objective.full_batch)
    assert result.initial.train_loss == pytest.approx(expected, rel=1e-12)
    assert result.final.train_loss < 0.8 * result.initial.train_loss
    if comm.rank == 0:
        run = open_run(str(shared_path / "run"))
        assert run.facts["layout"] == "variables"
        assert run.facts["grid"] == [shards, comm.size // shards]
        assert sum(run.facts["block_sizes"]) == run.facts["parameters"]
        assert run.history["train_loss"][-1] == result.final.train_loss


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("solver.name=sgd", 'model.init = "torch" is not possible'),
        ("parallel.data=7", "parallel.data = 7 does not fit"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_data_are_read(comm: Communicator, setting: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        PreparedJob(parse_job(JOB, [setting, "data.source=not-there.csv"]), comm)
