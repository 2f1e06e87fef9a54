"""Kronecker factors on any number of ranks: the numbers of one rank, and inverses that are the same on all."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.layout.block import block
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.variable_blocks import VariableBlockObjective
from hpcopt.optim.model_objective import ModelObjective
from hpcopt.solvers.preconditioners.kronecker import KroneckerFactors
from hpcopt.solvers.solver import State
from tests.support.problems import samples, sharded, small_network

pytestmark = pytest.mark.mpi


def after(objective: DataParallelObjective, steps: int = 3, **options: object) -> tuple[State, torch.Tensor]:
    """The state after some refreshes at one point, and P times ones."""
    solver = KroneckerFactors(**options)  # type: ignore[arg-type]
    w = objective.initial_vector()
    state: State = {"parameters": w} | solver.init(objective, w)
    for _ in range(steps):
        solver.end(objective, state, solver.begin(objective, state, objective.full_batch), 0.04)
    return state, solver.apply(state, torch.ones_like(w))


def assert_same(one: tuple[State, torch.Tensor], other: tuple[State, torch.Tensor]) -> None:
    for key in ("factors", "factor_inverses"):
        torch.testing.assert_close(one[0][key], other[0][key], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(one[1], other[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("loss", "fisher", "size"),
    [("cross_entropy", "true", 12), ("squared", "true", 2000), ("squared", "empirical", 12)],
)
def test_the_numbers_are_those_of_one_rank(
    comm: Communicator, alone: Communicator, loss: str, fisher: str, size: int
) -> None:
    options = {"fisher": fisher, "factor_samples": size}
    ours = after(sharded(comm, loss, weight_decay=0.1), **options)
    assert_same(ours, after(sharded(alone, loss, weight_decay=0.1), **options))


@pytest.mark.parametrize("more", [False, True])
def test_ranks_with_a_single_sample_or_none_take_part(comm: Communicator, alone: Communicator, more: bool) -> None:
    """Two samples, or one more than there are ranks, so that the first has two."""
    count = comm.size + 1 if more else 2
    assert_same(after(sharded(comm, count=count)), after(sharded(alone, count=count)))


@pytest.mark.parametrize("shards", [1, 2])
def test_ranks_that_share_samples_share_the_sums(comm: Communicator, alone: Communicator, shards: int) -> None:
    if comm.size % shards:
        pytest.skip(f"{comm.size} ranks are not {shards} rows")
    (inputs, targets), (start, length) = samples(), block(37, shards, comm.rank * shards // comm.size)
    own = slice(start, start + length)
    found = VariableBlockObjective(deep(), "cross_entropy", inputs[own], targets[own], comm, shards=shards)
    assert_same(after(found), after(sharded(alone, model=deep())))


def deep() -> torch.nn.Module:
    torch.manual_seed(3)
    sizes = [5, 6, 5, 4, 3]
    layers = [torch.nn.Linear(a, b) for a, b in pairwise(sizes)]
    return torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.Tanh()))).double()


def test_every_rank_has_the_same_inverses_to_the_last_bit(comm: Communicator) -> None:
    state, result = after(sharded(comm))
    told = comm.allgather_objects([state["factor_inverses"].tolist(), result.tolist()])  # type: ignore[union-attr]
    assert told == [told[0]] * comm.size


def test_a_refresh_is_two_small_sums_one_reduction_and_one_gathering(comm: Communicator) -> None:
    objective = sharded(comm)
    after(objective, 1)
    calls = {row.label: row.calls for row in objective.comm.ledger.rows()}
    assert (calls["factors"], calls["inverses"]) == (1, 1)


def test_numbers_that_are_not_finite_on_one_rank_are_refused_on_all(comm: Communicator) -> None:
    objective, solver = sharded(comm), KroneckerFactors(factor_every=1)
    w = objective.initial_vector()
    state: State = {"parameters": w} | solver.init(objective, w)
    if comm.rank == comm.size - 1:
        objective.shard.inputs[0, 0] = torch.inf
    solver.end(objective, state, solver.begin(objective, state, objective.full_batch), 0.04)
    assert state["factor_failures"] == 1
    assert torch.equal(solver.apply(state, w), w)


def test_factors_of_convolutions_are_those_of_one_rank_where_no_layer_mixes_samples(
    comm: Communicator, alone: Communicator
) -> None:
    count = 12
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 2, 5, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (count,), generator=generator)
    start, length = block(count, comm.size, comm.rank)[:2]

    def objective(comm: Communicator, own: slice, norm: torch.nn.Module) -> DataParallelObjective:
        torch.manual_seed(1)
        layers = [torch.nn.Conv2d(2, 3, 3), norm, torch.nn.ReLU(True), torch.nn.Flatten(), torch.nn.Linear(27, 3)]
        return DataParallelObjective(
            torch.nn.Sequential(*layers).double(), "cross_entropy", x[own], y[own], comm, weight_decay=0.01
        )

    own = slice(start, start + length)
    # a norm over the channels of a sample does not mix samples, so that any number of ranks gives the same numbers
    ours = objective(comm, own, torch.nn.GroupNorm(1, 3))
    assert_same(after(ours), after(objective(alone, slice(None), torch.nn.GroupNorm(1, 3))))
    mixed = after(objective(comm, own, torch.nn.BatchNorm2d(3)))
    assert bool(mixed[1].isfinite().all())


def test_a_failure_of_one_layer_is_known_everywhere(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "hpcopt.solvers.preconditioners.kronecker.damped_inverses",
        lambda a, g, damping: None if len(a) == 6 else (torch.eye(len(a)).to(a), torch.eye(len(g)).to(g)),
    )
    state, _ = after(sharded(comm, model=small_network()), 1)
    assert state["factor_failures"] == 1
    assert state["factor_boosts"].tolist() == [10.0, 1.0]  # type: ignore[union-attr]


class Fails(torch.nn.Module):
    """A model that fails in training on one rank, once it is told to."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.layer, self.own, self.failing = torch.nn.Linear(5, 3).double(), rank, -1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.own == self.failing:
            raise ValueError("this model does not like rank 1")
        return self.layer(x)  # type: ignore[no-any-return]


def test_a_model_that_fails_on_one_rank_leaves_factors_and_work_finite(comm: Communicator) -> None:
    whole, model, solver = sharded(comm), Fails(comm.rank), KroneckerFactors(factor_every=1)
    objective = ModelObjective(model, "cross_entropy", comm, 0.0, None, 0)
    w = objective.initial_vector()
    state: State = {"parameters": w} | solver.init(objective, w)
    with torch.no_grad():  # as in a step of an optimiser
        objective.begin(whole.shard.inputs, whole.shard.targets)
        objective.samples = whole.samples
        solver.end(objective, state, solver.begin(objective, state, whole.full_batch), 0.04)
        before = solver.apply(state, w)
        assert not torch.allclose(before, w)
        model.failing = comm.size - 1
        solver.end(objective, state, solver.begin(objective, state, whole.full_batch), 0.04)
        assert state["factor_failures"] == 1
        solver.begin(objective, state, whole.full_batch)
        with pytest.raises((ValueError, RuntimeError), match="does not like"):
            objective.value(w, whole.full_batch)
        model.failing = -1
        objective.begin(whole.shard.inputs, whole.shard.targets)
        assert torch.equal(solver.apply(state, w), before)
        solver.end(objective, state, solver.begin(objective, state, whole.full_batch), 0.04)
    assert state["factor_refreshes"] == 2
    assert math.isfinite(objective.work.gradients)
