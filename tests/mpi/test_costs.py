"""The closed forms of messages: what the ledger counts in steps of every method is what they say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.costs.facts import case_of
from hpcopt.costs.messages import Messages, Replicated, Sharded, Spread, VariableBlocks
from hpcopt.costs.methods import Case, messages_of
from hpcopt.costs.network import Grid
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.problem import Problem
from hpcopt.objective.protocol import Batch
from hpcopt.objective.sharded.objective import ShardedStateObjective
from hpcopt.solvers.registry import make_solver
from tests.support import networks
from tests.support.grids import divides, mini_batches, on_grid
from tests.support.problems import CLASSES, FEATURES, SAMPLES, loss_for, sharded, small_network

pytestmark = pytest.mark.mpi

BEFORE, COUNTED, BATCH = 5, 5, 12
"""Steps before the count begins, steps that are counted, which are every period and an epoch, samples of a batch."""

SMALL = {"radius_initial": 1e-3, "radius_max": 1e-3}
"""Steps of a trust region that are all accepted."""

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("sgd", {}),
    ("adam", {}),
    ("lars", {}),
    ("trust_region", SMALL),
    ("trust_region", {"model": "lbfgs", "memory": 3, **SMALL}),
    ("trust_region", {"model": "first_order", **SMALL}),
    ("lbfgs", {"memory": 4}),
    ("apts", SMALL),
    ("apts", {"global_solver": "adam", "global_iterations": 2, "average": 0.0, **SMALL}),
    ("apts", {"radius_control": "batch", "global_iterations": 0, **SMALL}),
    ("nlcg", {"subset_least": 5, "damping": 10.0}),
    ("nlcg", {"preconditioner": "diagonal_bfgs"}),
    ("nlcg", {"preconditioner": "identity", "damping_control": "batch"}),
    ("nlcg", {"step_rule": "strong_wolfe", "preconditioner": "gauss_newton_diagonal"}),
    ("nlcg", {"step_rule": "hager_zhang", "preconditioner": "diagonal_bfgs", "beta": "hz"}),
    ("nlcg", {"step_rule": "control", "preconditioner": "diagonal_bfgs", "learning_rate": 1e-3}),
    ("nlcg", {"preset": "paper", "learning_rate": 1e-3}),
    ("newton", {"subset": 1.0}),
    ("newton", {"subset": 1.0, "preconditioner": "none", "cg_iterations": 3, "cg_tolerance": 1e-9, "damping": 10.0}),
    ("slimtrain", {"form": "gram", "learning_rate": 1e-3}),
    ("slimtrain", {"form": "tsqr", "theta_solver": "lars"}),
    ("slimtrain", {"form": "gather", "deliver": "iterate"}),
]


def batch_of(objective: Problem, number: int, whole: bool) -> Batch:
    """The whole set, or samples that all lie on the last rank, where there are enough."""
    if whole:
        return objective.full_batch  # type: ignore[attr-defined,no-any-return]
    comm = objective.comm
    own = torch.arange(BATCH) if comm.rank == comm.size - 1 else torch.arange(0)
    return Batch(own, len(own), BATCH, (number, 0), float(number), ends_epoch=number % COUNTED == 4)


def short(name: str, options: dict[str, Any], whole: bool) -> dict[str, Any]:
    """Options, on the whole set with which Newton does not arrive while its steps are counted."""
    if name != "newton" or not whole:
        return options
    factors = {} if options.get("preconditioner") == "none" else {"factor_damping": 1e3}
    return options | {"combine": False, "damping": 1e3} | factors


def measured(objective: Problem, solver: Any, whole: bool) -> tuple[dict[str, tuple[float, float]], float]:
    """Calls and bytes of a step under each label, in the mean, and how many points or products it took."""
    state, tried = solver.init(objective), 0
    for number in range(BEFORE):
        state, _ = solver.step(objective, state, batch_of(objective, number, whole))
    before = objective.comm.ledger.snapshot()
    for number in range(BEFORE, BEFORE + COUNTED):
        state, report = solver.step(objective, state, batch_of(objective, number, whole))
        assert report.accepted
        tried += report.inner_iterations
    rows = objective.comm.ledger.rows(before)
    return {row.label: (row.calls / COUNTED, row.bytes / COUNTED) for row in rows}, tried / COUNTED


def by_label(messages: Messages) -> dict[str, tuple[float, float]]:
    """Calls and bytes under each label of the ledger."""
    found: dict[str, tuple[float, float]] = {}
    for message in messages:
        calls, moved = found.get(message.label, (0.0, 0.0))
        found[message.label] = (calls + message.calls, moved + message.bytes)
    return {label: entry for label, entry in found.items() if entry[0]}


def said(messages: Messages) -> dict[str, Any]:
    return {label: pytest.approx(entry) for label, entry in by_label(messages).items()}


def whole_of(comm: Communicator, name: str, dtype: torch.dtype = torch.float64) -> DataParallelObjective:
    """Enough samples on the last rank for a mini-batch. Newton's model is linear, so that no step is too long."""
    if name == "newton":
        return sharded(comm, "squared", torch.nn.Linear(FEATURES, CLASSES).double(), 4 * SAMPLES)
    return sharded(comm, loss_for(name), small_network().to(dtype), 4 * SAMPLES)


def check(objective: Problem, spread: Spread, name: str, solver: Any, case: Case, whole: bool) -> None:
    found, tried = measured(objective, solver, whole)
    assert found == said(messages_of(name, solver, spread, replace(case, trials=tried)))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("name", "options"), METHODS, ids=lambda value: str(value)[:40])
def test_steps_of_replicated_variables_send_what_is_said(
    comm: Communicator, name: str, options: dict[str, Any], whole: bool
) -> None:
    objective, solver = whole_of(comm, name), make_solver(name, short(name, options, whole), 100.0)
    total = objective.samples if whole else BATCH
    case = case_of(objective, solver, total, per_epoch=1 if whole else COUNTED)
    check(objective, Replicated(objective.shard.parameters.counts, comm.size, 8), name, solver, case, whole)


@pytest.mark.parametrize("name", ["sgd", "apts", "slimtrain"])
def test_scalars_ride_exactly_behind_vectors_of_float32(comm: Communicator, name: str) -> None:
    objective, solver = whole_of(comm, name, torch.float32), make_solver(name, SMALL if name == "apts" else {}, 100.0)
    case = case_of(objective, solver, objective.samples)
    check(objective, Replicated(objective.shard.parameters.counts, comm.size, 4), name, solver, case, True)


@pytest.mark.parametrize(
    ("name", "options"),
    [each for each in METHODS if each[0] in ("adam", "trust_region", "lbfgs")]
    + [each for each in METHODS if (each[0] == "nlcg" and "preconditioner" in each[1]) or "preset" in each[1]]
    + [METHODS[18]],
    ids=lambda value: str(value)[:40],
)
def test_steps_of_sharded_variables_send_what_is_said(comm: Communicator, name: str, options: dict[str, Any]) -> None:
    inner, solver = whole_of(comm, name), make_solver(name, options, 100.0)
    case = case_of(inner, solver, BATCH, per_epoch=COUNTED)
    check(ShardedStateObjective(inner), Sharded(inner.shard.parameters.counts, comm.size, 8), name, solver, case, False)


def test_long_sharded_variables_are_gathered_in_parts_as_is_said(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcopt.costs.messages.PART_BYTES", 100)
    name, options = "nlcg", {"preconditioner": "diagonal_bfgs"}
    inner, solver = whole_of(comm, name), make_solver(name, options, 100.0)
    case = case_of(inner, solver, BATCH, per_epoch=COUNTED)
    spread = Sharded(inner.shard.parameters.counts, comm.size, 8)
    assert comm.size == 1 or by_label(spread.value())["variables"][0] > by_label(spread.linearize())["variables"][0]
    check(ShardedStateObjective(inner, part_bytes=100), spread, name, solver, case, False)


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("whole", [True, False])
def test_steps_of_apts_with_blocks_of_variables_send_what_is_said(
    comm: Communicator, shards: int, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    divides(comm, shards)
    objective, solver = on_grid(comm, shards), make_solver("apts", SMALL)
    case = case_of(objective, solver, SAMPLES if whole else BATCH, per_epoch=1 if whole else COUNTED)
    batches = [objective.full_batch] * 10 if whole else list(mini_batches(objective, BATCH, BEFORE + COUNTED))
    spread = VariableBlocks(objective.shard.parameters.counts, comm.size, 8, shards, comm.rank)
    monkeypatch.setattr(f"{__name__}.batch_of", lambda objective, number, whole: batches[number])
    check(objective, spread, "apts", solver, case, whole)


@pytest.mark.parametrize("jacobian", ["explicit", "implicit"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sgd", {}),
        ("lbfgs", {"memory": 4}),
        ("trust_region", SMALL),
        ("nlcg", {"preconditioner": "gauss_newton_diagonal", "subset": 1.0, "damping": 10.0}),
        ("newton", {"subset": 1.0, "cg_iterations": 2, "cg_tolerance": 1e-9, "damping": 1e3, "combine": False}),
        ("newton", {"subset": 1.0, "direction": "block", "block_solver": "cg", "damping": 1e3, "combine": False}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_steps_on_a_network_that_is_cut_over_a_grid_send_what_is_said(
    comm: Communicator, grid: tuple[int, int], name: str, options: dict[str, Any], jacobian: str
) -> None:
    solver = make_solver(name, options)
    if getattr(solver, "direction", "") == "block" and jacobian == "implicit":
        return
    objective = networks.on_grid(comm, grid, (5, 7, 6, 5, 4), jacobian=jacobian)
    counts = objective.samples, objective.samples
    spread = Grid(objective.partition, comm.rank, 8, *counts, splits=True, explicit=jacobian == "explicit")
    check(objective, spread, name, solver, Case(whole=True, batch=objective.samples), True)
