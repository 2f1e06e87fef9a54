"""Conjugate directions with a scheduled step length: the released code exactly, and what makes it robust."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from hpcopt.kernels import sweeps
from hpcopt.linalg.conjugacy import RULES
from hpcopt.objective.protocol import Batch, Objective, Vector
from hpcopt.solvers.conjugate.controlled import ControlledDirections
from hpcopt.solvers.nlcg import NLCG
from hpcopt.solvers.preconditioners.diagonal_bfgs import DiagonalBFGS, ReleasedDiagonalBFGS
from hpcopt.solvers.preconditioners.gauss_newton_diagonal import GaussNewtonDiagonal
from hpcopt.solvers.preconditioners.protocol import Identity, Preconditioner
from hpcopt.solvers.registry import make_solver
from hpcopt.solvers.sgd import SGD
from hpcopt.solvers.solver import State
from tests.support.checks import assert_state_is_complete, run
from tests.support.objectives import FULL, FaultyObjective, FunctionObjective, QuadraticObjective, digits, mini_batches
from tests.support.released import ReleasedReference


def controlled(preconditioner: Preconditioner | None = None, **options: Any) -> ControlledDirections:
    return ControlledDirections(NLCG(step_rule="control", **options), preconditioner or Identity())


def paper(**options: Any) -> ControlledDirections:
    solver = make_solver("nlcg", {"preset": "paper"} | options)
    assert isinstance(solver, NLCG)
    return ControlledDirections(solver, ReleasedDiagonalBFGS())


class Constant(Identity):
    """P = diag(p) for ever."""

    def __init__(self, p: torch.Tensor) -> None:
        object.__setattr__(self, "p", p)

    def apply(self, state: State, vector: Vector) -> Vector:
        """P r."""
        return self.p * vector  # type: ignore[attr-defined,no-any-return]


def given_gradients(count: int = 50) -> tuple[FunctionObjective, list[Batch]]:
    """Losses that are linear in w, another one for every batch: no error of rounding grows, some pairs are refused."""
    generator = torch.Generator().manual_seed(0)
    slopes = torch.randn(count, 24, generator=generator, dtype=torch.float64) + 1
    heights = 20 + torch.randn(count, generator=generator, dtype=torch.float64).cumsum(0)
    batches = [Batch(torch.arange(1), 1, 1, key=(0, number)) for number in range(count)]
    start = torch.linspace(-1, 1, 24, dtype=torch.float64)

    def function(w: torch.Tensor, batch: Batch) -> torch.Tensor:
        return heights[batch.key[1]] + 0.1 * slopes[batch.key[1]] @ w

    return FunctionObjective(function, start, [slice(0, 6), slice(10, 24)]), batches


@pytest.mark.parametrize("problem", ["network", "gradients"])
@pytest.mark.parametrize("trust", [0.0, 0.05])
@pytest.mark.parametrize("rule", ["fr", "pr"])
def test_the_preset_of_the_paper_is_the_released_code(
    rule: str, trust: float, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On mini-batches through warm-up and drops, with pairs that are refused and steps of which a part is undone."""
    monkeypatch.setattr(sweeps, "PIECE", 100 if problem == "network" else 7)
    objective, batches = given_gradients()
    if problem == "network":
        objective = digits(torch.float64)
        batches = mini_batches(objective)
    solver = paper(beta=rule, learning_rate=0.3, layer_trust=trust, warmup_epochs=6.0, decay_epochs=[30.0, 40.0])
    layers = [part for part, shape in objective.parameter_tensors() if len(shape) > 1]
    reference = ReleasedReference(objective.initial_vector(), rule, layers, trust, 0.9999)
    state = solver.init(objective)
    for step in range(50):
        batch = replace(batches[step % len(batches)], position=float(step))
        loss, gradient = objective.value_and_gradient(reference.w, batch)
        reference.step(loss, gradient, solver._options.rate(float(step)))
        state, report = solver.step(objective, state, batch)
        assert report.loss == pytest.approx(loss, rel=1e-8)
        torch.testing.assert_close(state["parameters"], reference.w, rtol=1e-7, atol=1e-9)
        assert state["base"] == pytest.approx(reference.base, rel=1e-12)
    torch.testing.assert_close(state["hessian"], reference.h, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(state["average"], reference.average, rtol=1e-7, atol=1e-9)
    if problem == "gradients":
        assert 0 < reference.gated < 45
        assert reference.undone > 0


@pytest.mark.parametrize("rule", RULES)
def test_products_in_one_pack_or_two_are_the_same_steps_where_h_stays(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReleasedDiagonalBFGS, "usable", lambda *_: False)
    options = {"beta": rule, "learning_rate": 0.3}
    one, two = digits(torch.float64), digits(torch.float64)
    found, _ = run(controlled(Identity(), **options), one, 30, batches=mini_batches(one))
    expected, _ = run(controlled(ReleasedDiagonalBFGS(), **options), two, 30, batches=mini_batches(two))
    torch.testing.assert_close(found["parameters"], expected["parameters"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", [paper(), controlled(DiagonalBFGS()), controlled(GaussNewtonDiagonal())])
def test_the_first_step_is_gradient_descent_in_the_metric(solver: ControlledDirections) -> None:
    objective = digits(torch.float64)
    state, report = solver.step(objective, solver.init(objective), FULL)
    if isinstance(solver._preconditioner, GaussNewtonDiagonal):
        _, gradient = objective.value_and_gradient(objective.start, FULL)
        expected = objective.start - 0.1 * GaussNewtonDiagonal().apply(state, gradient)
    else:
        expected, _ = run(SGD(learning_rate=0.1), objective, 1)
        expected = expected["parameters"]
    torch.testing.assert_close(state["parameters"], expected, rtol=1e-12, atol=1e-14)
    assert report.step_size == 0.1


@pytest.mark.parametrize("rule", ["fr", "pr", "hs", "dy"])  # the floor of hz is in the norms of w
def test_a_constant_metric_is_the_identity_on_changed_variables(rule: str) -> None:
    """With w = P^{1/2} v the gradient is P^{1/2} g, and P disappears from every formula."""
    p, inner = torch.logspace(-1, 1, 12, dtype=torch.float64), QuadraticObjective(12, 20.0)
    changed = FunctionObjective(lambda v, batch: inner.function(p.sqrt() * v, batch), inner.start / p.sqrt())
    options = {"learning_rate": 0.01, "control": "none", "beta": rule}
    state, _ = run(controlled(Constant(p), **options), inner, 30)
    state_changed, _ = run(controlled(**options), changed, 30)
    torch.testing.assert_close(state["parameters"], p.sqrt() * state_changed["parameters"], rtol=1e-9, atol=1e-12)


EACH_RULE = [(rule, Identity()) for rule in RULES]
EACH_METRIC = [("fr", DiagonalBFGS()), ("hz", ReleasedDiagonalBFGS()), ("pr", GaussNewtonDiagonal())]


@pytest.mark.parametrize(("rule", "preconditioner"), EACH_RULE + EACH_METRIC)
def test_every_rule_and_preconditioner_trains(rule: str, preconditioner: Preconditioner) -> None:
    objective = digits()
    rate = 0.01 if isinstance(preconditioner, GaussNewtonDiagonal) else 0.3
    state, reports = run(controlled(preconditioner, beta=rule, learning_rate=rate), objective, 60)
    assert objective.value(state["parameters"], FULL) < 0.5 * reports[0].loss


def test_the_direction_is_dropped_where_it_would_not_descend() -> None:
    """A gradient that turns round makes the previous direction one of ascent."""
    slope = [1.0]
    objective = FunctionObjective(lambda w, _: slope[0] * w.sum(), torch.zeros(3, dtype=torch.float64))
    for safeguards, expected in ((True, -1.0), (False, 0.0)):
        solver = controlled(beta="fr", safeguards=safeguards, control="none")
        state, _ = run(solver, objective, 1)
        slope[0] = -1.0
        state, _ = run(solver, objective, 1, state)
        slope[0] = 1.0
        assert state["direction"].tolist() == pytest.approx([-expected] * 3)


@pytest.mark.parametrize("safeguards", [True, False])
def test_a_drop_of_the_rate_and_a_part_taken_back_are_restarts(safeguards: bool) -> None:
    objective = QuadraticObjective(6, 4.0)
    solver = controlled(
        beta="fr", safeguards=safeguards, control="none", schedule="step", decay_epochs=[5.0], learning_rate=0.02
    )
    state, _ = run(solver, objective, 6, positions=[float(k) for k in range(6)])
    _, gradient = objective.value_and_gradient(state["parameters"] - 0.002 * state["direction"], FULL)
    assert torch.allclose(state["direction"], -gradient) == safeguards


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("at", [0, 3])
def test_what_is_not_finite_leaves_the_point(at: int, where: str) -> None:
    objective = FaultyObjective(digits(), at, where)
    solver = controlled(learning_rate=0.3)
    state = solver.init(objective)
    for step in range(8):
        before = state["parameters"].clone()
        state, report = solver.step(objective, state, FULL)
        assert report.accepted == report.finite == (step != at)
        assert torch.equal(before, state["parameters"]) == (step == at)
    assert objective.injected == 1
    assert bool(state["parameters"].isfinite().all())


def test_pairs_are_of_one_batch_and_cost_a_gradient_in_every_fifth_step() -> None:
    objective, seen = digits(torch.float64), []

    class Noting(DiagonalBFGS):
        def observe(self, objective: Objective, state: State, step: Vector, change: Vector) -> None:
            seen.append((step, change, state["parameters"].clone()))  # type: ignore[union-attr]

    batches = mini_batches(objective)
    run(controlled(Noting(), learning_rate=0.3), objective, 10, batches=batches)
    assert objective.work.gradients == 12
    for (step, change, end), batch in zip(seen, (batches[0], batches[5 % len(batches)]), strict=True):
        after, before = (objective.value_and_gradient(w, batch)[1] for w in (end, end - step))
        torch.testing.assert_close(change, after - before)


@pytest.mark.parametrize(
    "solver",
    [paper(), paper(beta="pr"), controlled(DiagonalBFGS(), beta="hz"), controlled(GaussNewtonDiagonal(), beta="hs")],
)
def test_the_state_is_complete(solver: ControlledDirections) -> None:
    objective = digits()
    assert_state_is_complete(solver, objective, batches=mini_batches(objective))
