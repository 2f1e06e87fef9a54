"""The preconditioner of Kronecker factors: what it multiplies with, when it is refreshed, and what failures leave."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.linalg import kronecker as linear_algebra
from hpcopt.objective.curvature.kronecker import KroneckerCurvature
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.solvers.preconditioners.kronecker import BOOST, KroneckerFactors
from hpcopt.solvers.solver import State
from tests.support.factors import matrices
from tests.support.problems import sharded

DAMPING = 0.04


def start(objective: DataParallelObjective, solver: KroneckerFactors) -> State:
    w = objective.initial_vector()
    return {"parameters": w} | solver.init(objective, w)


def refresh(objective: DataParallelObjective, solver: KroneckerFactors, state: State, steps: int = 1) -> list[bool]:
    """Some iterations at one point; which of them had a refresh."""
    found = []
    for _ in range(steps):
        pending = solver.begin(objective, state, objective.full_batch)
        solver.end(objective, state, pending, DAMPING)
        found.append(pending is not None)
    return found


@pytest.mark.parametrize(("weight_decay", "decay_norms"), [(0.0, True), (0.3, True), (0.3, False)])
def test_p_is_the_inverse_of_damped_products(comm: Communicator, weight_decay: float, decay_norms: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    objective = sharded(comm, model=model, weight_decay=weight_decay, decay_norms=decay_norms)
    solver = KroneckerFactors()
    state = start(objective, solver)
    refresh(objective, solver, state, 2)
    ((a1, g1), (a2, g2)), diagonal = matrices(objective.kronecker, state["factors"])  # type: ignore[arg-type]
    damping, of_norm = DAMPING + weight_decay, DAMPING + weight_decay * decay_norms
    blocks = []
    for a, g in ((a1, g1), (a2, g2)):
        pi, r = math.sqrt(float(a.trace() / len(a) / (g.trace() / len(g)))), math.sqrt(damping)
        shifted = [m + s * torch.eye(len(m), dtype=m.dtype) for m, s in ((a, pi * r), (g, r / pi))]
        blocks.append(torch.kron(shifted[1], shifted[0]))
    v = torch.randn(objective.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # w: weight (4, 5), norm (8), weight (3, 4), bias (3,); the bias is the last of five inputs
    last = torch.cat([v[28:40].view(3, 4), v[40:43, None]], 1)
    solved = torch.linalg.solve(blocks[1], last.flatten()).view(3, 5)
    parts = [torch.linalg.solve(blocks[0], v[:20]), v[20:28] / (diagonal + of_norm), solved[:, :4], solved[:, 4]]
    kept = v.clone()
    torch.testing.assert_close(solver.apply(state, v), torch.cat([part.flatten() for part in parts]))
    assert torch.equal(v, kept)


def test_before_the_first_refresh_p_is_the_identity(comm: Communicator) -> None:
    objective, solver = sharded(comm), KroneckerFactors()
    v = torch.arange(float(objective.size), dtype=torch.float64)
    assert torch.equal(solver.apply(start(objective, solver), v), v)


def test_each_of_the_first_iterations_has_a_refresh_and_then_every_fifth(comm: Communicator) -> None:
    objective, solver = sharded(comm), KroneckerFactors()
    found = refresh(objective, solver, start(objective, solver), 17)
    assert [step for step, refreshed in enumerate(found) if refreshed] == [0, 1, 2, 3, 4, 5, 10, 15]


def test_factors_are_a_mean_at_first_and_then_forget(comm: Communicator) -> None:
    objective, solver = sharded(comm), KroneckerFactors(factor_every=1, factor_memory=0.75, factor_samples=10)
    state, seen = start(objective, solver), []
    begin = KroneckerCurvature.begin

    class Spy(KroneckerCurvature):
        def begin(self, *arguments: Any) -> Any:
            seen.append(begin(self, *arguments).wait().clone())
            return begin(self, *arguments)

    objective.kronecker.__class__ = Spy
    for count, weights in ((1, [1.0]), (2, [0.5] * 2), (3, [1 / 3] * 3), (4, [0.25] * 4), (5, [0.1875] * 4 + [0.25])):
        refresh(objective, solver, state)
        assert len(seen) == count
        expected = sum(weight * each for weight, each in zip(weights, seen, strict=True))
        torch.testing.assert_close(state["factors"], expected, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(seen[0], seen[1])


def test_a_failed_inverse_leaves_the_previous_one_and_is_damped_more(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, solver = sharded(comm), KroneckerFactors(factor_every=1)
    state, dampings = start(objective, solver), []
    refresh(objective, solver, state)
    before = copy.deepcopy(state)
    real = linear_algebra.damped_inverses

    def failing(a: torch.Tensor, g: torch.Tensor, damping: float) -> Any:
        dampings.append(damping)
        return None if len(a) == 6 and len(dampings) <= 2 else real(a, g, damping)

    monkeypatch.setattr("hpcopt.solvers.preconditioners.kronecker.damped_inverses", failing)
    refresh(objective, solver, state)
    first = slice(0, 36 + 49)
    assert state["factor_failures"] == 1
    assert state["factor_boosts"].tolist() == [BOOST, 1.0]  # type: ignore[union-attr]
    changed = state["factor_inverses"] != before["factor_inverses"]
    assert not changed[first].any()  # type: ignore[index]
    assert changed[85:].all()  # type: ignore[index]
    refresh(objective, solver, state)
    assert dampings == pytest.approx([DAMPING, DAMPING, DAMPING * BOOST, DAMPING])
    assert state["factor_boosts"].tolist() == [1.0, 1.0]  # type: ignore[union-attr]
    assert (state["factor_inverses"] != before["factor_inverses"])[first].all()  # type: ignore[index]


def test_factors_that_are_not_finite_never_reach_the_state(comm: Communicator) -> None:
    objective, solver = sharded(comm), KroneckerFactors(factor_every=1)
    state = start(objective, solver)
    refresh(objective, solver, state)
    before = copy.deepcopy(state)
    objective.shard.inputs[3, 1] = torch.nan
    assert refresh(objective, solver, state) == [True]
    assert state["factor_failures"] == 1
    assert all(torch.equal(state[key], before[key]) for key in ("factors", "factor_inverses"))  # type: ignore[arg-type]


class Sometimes(nn.Module):
    """A first layer that can be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.both = nn.Linear(5, 5), nn.Linear(5, 3), True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x) if self.both else x)  # type: ignore[no-any-return]


def test_a_layer_that_is_not_called_keeps_the_identity(comm: Communicator) -> None:
    model = Sometimes().double()
    objective, solver = sharded(comm, model=model), KroneckerFactors(factor_every=1)
    state = start(objective, solver)
    model.both = False
    refresh(objective, solver, state)
    assert state["factor_failures"] == 1
    v = torch.ones(objective.size, dtype=torch.float64)
    found = solver.apply(state, v)
    assert torch.equal(found[:30], v[:30])
    assert not torch.isclose(found[30:], v[30:]).any()


def test_a_copy_of_the_state_goes_on_with_the_same_bits(comm: Communicator) -> None:
    objective, solver = sharded(comm), KroneckerFactors(factor_samples=10)
    state = start(objective, solver)
    refresh(objective, solver, state, 3)
    assert all(isinstance(value, (torch.Tensor, float, int, bool)) for value in state.values())
    other, again = copy.deepcopy(state), sharded(comm)
    refresh(objective, solver, state, 4)
    refresh(again, solver, other, 4)
    v = torch.ones(objective.size, dtype=torch.float64)
    assert torch.equal(solver.apply(state, v), solver.apply(other, v))
    assert state["factor_steps"] == other["factor_steps"] == 7


def test_on_a_linear_problem_p_gives_the_newton_direction_up_to_the_draws(comm: Communicator) -> None:
    objective = sharded(comm, "squared", nn.Linear(5, 3).double(), count=400)
    objective.shard.inputs.mul_(torch.logspace(-0.5, 1, 5, dtype=torch.float64))
    solver = KroneckerFactors(factor_every=1)
    state = start(objective, solver)
    for _ in range(10):
        solver.end(objective, state, solver.begin(objective, state, objective.full_batch), 1e-6)
    gradient = objective.value_and_gradient(objective.initial_vector(), objective.full_batch)[1]
    linear = objective.linearize(objective.initial_vector(), objective.full_batch)
    dense = torch.stack([linear.gauss_newton(v) for v in torch.eye(objective.size, dtype=torch.float64)])
    newton = torch.linalg.solve(dense, gradient)
    assert torch.cosine_similarity(gradient, newton, dim=0) < 0.8
    found = solver.apply(state, gradient)
    assert float((found - newton).norm() / newton.norm()) < 0.15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fisher": "exact"}, "fisher = 'exact' must be one of 'true', 'empirical'"),
        ({"factor_samples": 0}, "factor_samples = 0 must be a whole number"),
        ({"factor_every": 0}, "factor_every = 0 must be a whole number"),
        ({"factor_memory": 1.0}, "factor_memory = 1.0 must be a number"),
    ],
)
def test_options_that_break_their_rule_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        KroneckerFactors(**options)
