"""Replicas of a network, each on a grid of (simulated) ranks and with a shard of the instances, are the network."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from hpcopt.errors import UsageError
from hpcopt.objective.network.replicas import NetworkReplicas
from hpcopt.objective.protocol import Batch
from hpcopt.solvers.block_direction import BlockSolver
from hpcopt.solvers.newton import Newton
from tests.support.networks import (
    DECAY,
    FOUR,
    SAMPLES,
    THREE,
    assemble,
    data,
    on_grid,
    positions,
    replicated,
    start,
)
from tests.support.simulated import SimulatedCommunicator, on_ranks

PAPER = "every layer on ranks of its own"
SPLITS = {FOUR: (2, 1, 1, 1, 1), THREE: (1, 1, 2, 2)}
CASES = [(1, (1, 2)), (2, (1, 1)), (2, (2, 1)), (2, (1, 2)), (3, (1, 1)), (3, (2, 2)), (2, PAPER)]
PROBLEMS = [(FOUR, "squared"), (THREE, "cross_entropy")]
CHOSEN = [0, 3, 4, 8, 10]


@pytest.fixture(params=PROBLEMS, ids=lambda problem: problem[1])
def problem(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]} of {case[1]}")
def case(request: pytest.FixtureRequest, problem: Any) -> Any:
    """Number of replicas, and how each is cut: a grid, or a split by layers."""
    replicas, cut = request.param
    return replicas, SPLITS[problem[0]] if cut == PAPER else cut


def cells(case: Any) -> int:
    """Ranks of a replica."""
    cut = case[1]
    return math.prod(cut) if len(cut) == 2 else sum(a * b for a, b in pairwise(cut))


def ranks_of(case: Any) -> int:
    return case[0] * cells(case)


def made(comm: Any, case: Any, problem: Any, **options: Any) -> tuple[NetworkReplicas, torch.Tensor]:
    """The objective and this rank's numbers of a point."""
    objective = replicated(comm, *case, *problem, weight_decay=DECAY, micro_batch=4, **options)
    return objective, own(objective, start(problem[0]))


def own(objective: NetworkReplicas, whole: torch.Tensor) -> torch.Tensor:
    """This rank's numbers of a whole vector."""
    return whole[positions(objective.replica.partition, objective.replica.comm.rank)]


def whole_vectors(found: list[tuple[NetworkReplicas, torch.Tensor]]) -> list[torch.Tensor]:
    """The whole vector of each replica from those of all ranks."""
    objective, size = found[0][0], found[0][0].replica.comm.size
    parts = [vector for _, vector in found]
    return [assemble(objective.replica.partition, parts[i : i + size]) for i in range(0, len(parts), size)]


def alone(problem: Any, function: Any) -> Any:
    """What a function of the objective and the point returns on one rank that holds everything."""

    def run(comm: Any) -> Any:
        return function(on_grid(comm, (1, 1), *problem, weight_decay=DECAY), start(problem[0]))

    return on_ranks(1, run)[0]


def some_of(objective: NetworkReplicas) -> Batch:
    """A batch of five instances, as this rank's replica holds them."""
    first, count = objective.shards()
    mine = [i - first for i in CHOSEN if first <= i < first + count]
    return Batch(torch.tensor(mine, dtype=torch.int64), len(mine), len(CHOSEN))


@pytest.mark.parametrize("full", [True, False], ids=["full", "mini"])
def test_value_and_gradient_are_those_of_one_process(case: Any, problem: Any, full: bool) -> None:
    def run(comm: Any) -> Any:
        objective, w = made(comm, case, problem)
        batch = objective.full_batch if full else some_of(objective)
        value, gradient = objective.value_and_gradient(w, batch)
        assert objective.value(w, batch) == pytest.approx(value, rel=1e-14)
        assert objective.share(batch) == batch.count / batch.total
        return value, (objective, gradient)

    batch = None if full else Batch(torch.tensor(CHOSEN), 5, 5)
    expected, slope = alone(problem, lambda f, w: f.value_and_gradient(w, batch or f.full_batch))
    found = on_ranks(ranks_of(case), run)
    assert [value for value, _ in found] == [pytest.approx(expected, rel=1e-13)] * len(found)
    assert len({value for value, _ in found}) == 1
    for gradient in whole_vectors([each for _, each in found]):
        torch.testing.assert_close(gradient, slope, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("jacobian", ["explicit", "implicit"])
def test_products_are_those_of_one_process(case: Any, problem: Any, jacobian: str) -> None:
    directions = torch.stack([start(problem[0], seed) for seed in (7, 8)])

    def run(comm: Any) -> Any:
        objective, w = made(comm, case, problem, jacobian=jacobian)
        linear = objective.linearize(w, objective.full_batch)
        mine = torch.stack([own(objective, direction) for direction in directions])
        first, count = objective.shards()
        u = outputs[first : first + count]
        assert objective.jacobian == jacobian
        return (
            (objective, linear.gauss_newton(mine[0])),
            (objective, linear.vjp(u)),
            linear.jvp(mine[0]),
            (linear.curvatures(mine)),
        )

    def expect(objective: Any, w: torch.Tensor) -> Any:
        linear = objective.linearize(w, objective.full_batch)
        return (
            linear.gauss_newton(directions[0]),
            linear.vjp(outputs),
            linear.jvp(directions[0]),
            (linear.curvatures(directions)),
        )

    outputs = torch.randn(SAMPLES, problem[0][-1], generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    products, pulled, pushed, bent = alone(problem, expect)
    found = on_ranks(ranks_of(case), run)
    for number, expected in enumerate((products, pulled)):
        for vector in whole_vectors([each[number] for each in found]):
            torch.testing.assert_close(vector, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(torch.cat([each[2] for each in found[:: cells(case)]]), pushed, rtol=1e-12, atol=1e-13)
    for *_, curvatures in found:
        torch.testing.assert_close(curvatures, bent, rtol=1e-12, atol=1e-12)
        assert torch.equal(curvatures, found[0][3])


def test_figures_and_inner_products_are_those_of_one_process(case: Any, problem: Any) -> None:
    inputs, targets = data(*problem)

    def figures(objective: Any, w: torch.Tensor, test: Any, vectors: torch.Tensor) -> Any:
        squares = objective.inner(vectors, vectors).flatten().tolist()
        sums = [figure for part in objective.evaluate(w, test) for figure in part]
        return [*sums, *objective.moments(test[1]), *squares, objective.dot(*vectors)]

    def run(comm: Any) -> Any:
        objective, w = made(comm, case, problem)
        layout, rank = objective.replica.partition, objective.replica.comm.rank
        # Three test samples, so that the last of three replicas has none.
        held = slice(2 * objective.number, min(2 * objective.number + 2, 3))
        columns = targets if targets.ndim == 1 else targets[:, layout.outputs(rank).slice]
        test = (inputs[held, layout.features(rank).slice], columns[held])
        predicted = objective.predict(w, objective.full_batch)
        return figures(objective, w, test, torch.stack([w, own(objective, start(problem[0], 9))])), predicted

    whole = torch.stack([start(problem[0]), start(problem[0], 9)])
    shown = slice(3 if case[0] > 1 else 2)
    expected = alone(problem, lambda f, w: figures(f, w, (inputs[shown], targets[shown]), whole))
    predictions = alone(problem, lambda f, w: f.predict(w, f.full_batch))
    found = on_ranks(ranks_of(case), run)
    for numbers, _ in found:
        assert numbers == found[0][0] == pytest.approx(expected, rel=1e-12)
    predicted = torch.cat([each for _, each in found[:: cells(case)]])
    torch.testing.assert_close(predicted, predictions, rtol=1e-12, atol=1e-13)


def test_full_directions_of_newton_are_those_of_one_process(case: Any, problem: Any) -> None:
    solver = Newton(subset=1.0, cg_iterations=12, cg_tolerance=1e-4)

    def steps(objective: Any) -> Any:
        state, trace = solver.init(objective), []
        for _ in range(4):
            state, report = solver.step(objective, state, objective.full_batch)
            trace += [report.loss_after, report.gradient_norm, float(report.inner_iterations)]
        return trace, (objective, state["parameters"])

    found = on_ranks(ranks_of(case), lambda comm: steps(made(comm, case, problem)[0]))
    expected, (_, w) = alone(problem, lambda f, _: steps(f))
    for trace, _ in found:
        assert trace == found[0][0] == pytest.approx(expected, rel=1e-10)
    for vector in whole_vectors([each for _, each in found]):
        torch.testing.assert_close(vector, w, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("solver", ["cg", "gram"])
def test_a_direction_by_blocks_is_the_mean_of_the_replicas_and_one_of_descent(
    case: Any, problem: Any, solver: str
) -> None:
    def run(comm: Any) -> Any:
        objective, w = made(comm, case, problem)
        batch = objective.full_batch
        _, gradient = objective.value_and_gradient(w, batch)
        norm, linear = math.sqrt(objective.dot(gradient, gradient)), objective.linearize(w, batch)
        blocks, before = BlockSolver("rank", solver, 1e-12, 10 * objective.size), comm.ledger.snapshot()
        found = blocks.solve(linear.block, gradient, norm, 0.1, 0.0)
        assert {row.label: row.calls for row in comm.ledger.rows(before)} == {"block": 2}
        mine = blocks.solve(linear._own.block, gradient, norm, 0.1, 0.0)
        mean = objective.across.allreduce(mine.direction * batch.count / SAMPLES)
        torch.testing.assert_close(found.direction, mean, rtol=1e-13, atol=1e-14)
        assert float(gradient @ mine.direction) < 0
        assert float(gradient @ found.direction) < 0
        assert found.finite
        return found.iterations, linear.block.samples, (objective, found.direction)

    found = on_ranks(ranks_of(case), run)
    counts = found[0][0]
    assert all(iterations == counts for iterations, *_ in found)
    assert len(counts) == ranks_of(case)
    assert min(counts) > 3 if solver == "cg" else max(counts) == 0
    assert sum(samples for _, samples, _ in found) == SAMPLES * cells(case)
    first, *others = whole_vectors([each for *_, each in found])
    assert all(torch.equal(vector, first) for vector in others)


@pytest.mark.parametrize("solver", ["cg", "gram"])
def test_blocks_of_replicas_minimise(problem: Any, solver: str) -> None:
    method = Newton(direction="block", block_solver=solver, subset=0.5, subset_least=1, damping=0.1)

    def run(comm: Any) -> list[float]:
        objective = made(comm, (2, (2, 1)), problem)[0]
        state, losses = method.init(objective), []
        for _ in range(8):
            state, report = method.step(objective, state, objective.full_batch)
            losses.append(report.loss_after)
        return losses

    losses = on_ranks(4, run)
    assert all(each == losses[0] for each in losses)
    assert losses[0][-1] < 0.7 * losses[0][0]
    assert all(after <= before for before, after in zip(losses[0], losses[0][1:], strict=False))


@pytest.mark.parametrize("jacobian", ["explicit", "implicit"])
def test_a_replica_without_an_instance_in_a_batch_takes_part(problem: Any, jacobian: str) -> None:
    """Two instances of the first replica only; the direction by blocks is then that replica's."""

    def run(comm: Any) -> Any:
        objective, w = made(comm, (3, (1, 2)), problem, jacobian=jacobian)
        mine = [1, 2] if objective.number == 0 else []
        batch = Batch(torch.tensor(mine, dtype=torch.int64), len(mine), 2)
        value, gradient = objective.value_and_gradient(w, batch)
        linear = objective.linearize(w, batch)
        assert objective.value(w, batch) == pytest.approx(value)
        assert linear.jvp(w).shape == (len(mine), problem[0][-1])
        solved = [torch.zeros(0)] * 2
        if jacobian == "explicit":
            solvers = [BlockSolver("rank", solver, 1e-10, 500) for solver in ("cg", "gram")]
            solved = [each.solve(linear.block, gradient, 1.0, 0.1, 0.0).direction for each in solvers]
        vectors = (gradient, linear.gauss_newton(gradient), linear.vjp(linear.jvp(w)))
        return value, linear.curvatures(torch.stack([w, gradient])), [(objective, v) for v in vectors], solved

    def expect(objective: Any, w: torch.Tensor) -> Any:
        batch = Batch(torch.tensor([1, 2]), 2, 2)
        value, gradient = objective.value_and_gradient(w, batch)
        linear = objective.linearize(w, batch)
        vectors = (gradient, linear.gauss_newton(gradient), linear.vjp(linear.jvp(w)))
        return value, linear.curvatures(torch.stack([w, gradient])), vectors

    value, curvatures, vectors = alone(problem, expect)
    found = on_ranks(6, run)
    for each in found:
        assert each[0] == pytest.approx(value, rel=1e-13)
        torch.testing.assert_close(each[1], curvatures, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(each[3][0], each[3][1], rtol=1e-6, atol=1e-8)
    for number, expected in enumerate(vectors):
        for vector in whole_vectors([each[2][number] for each in found]):
            torch.testing.assert_close(vector, expected, rtol=1e-12, atol=1e-13)


def test_a_subset_is_spread_over_the_replicas_and_a_cycle_has_every_instance_once() -> None:
    def run(comm: Any) -> Any:
        objective = made(comm, (3, (1, 2)), PROBLEMS[0])[0]
        first, drawn = objective.shards()[0], []
        for number in range(4):
            batch = objective.subset(objective.full_batch, 3, number)
            drawn.append(([first + i for i in batch.indices.tolist()], batch.total))
        some = objective.subset(some_of(objective), 2, 0)
        return drawn, ([first + i for i in some.indices.tolist()], some.total)

    found = on_ranks(6, run)
    assert all(found[2 * d] == found[2 * d + 1] for d in range(3))
    for number in range(4):
        parts = [found[2 * d][0][number] for d in range(3)]
        assert {total for _, total in parts} == {sum(len(indices) for indices, _ in parts)}
        assert max(len(indices) for indices, _ in parts) <= 2
    everyone = [i for d in range(3) for indices, _ in found[2 * d][0] for i in indices]
    assert sorted(everyone) == list(range(SAMPLES))
    assert set(np.concatenate([found[2 * d][1][0] for d in range(3)]).astype(int)) <= set(CHOSEN)


def test_work_is_counted_in_passes_over_all_instances() -> None:
    def run(comm: Any) -> Any:
        objective, w = made(comm, (2, (1, 1)), PROBLEMS[0], jacobian="implicit")
        objective.value_and_gradient(w, objective.full_batch)
        linear = objective.linearize(w, objective.full_batch)
        linear.gauss_newton(w)
        work = objective.work
        return work.values, work.gradients, work.curvature_products, objective.blocks, objective.layout["replicas"]

    assert on_ranks(2, run) == [(1.0, 1.0, 1.0, [0, 0], 2)] * 2


def test_the_jacobian_that_is_measured_is_that_of_the_first_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcopt.objective.network.objective.measure", lambda objective, limit: objective.samples)
    kinds = {6: "implicit", 5: "explicit"}
    monkeypatch.setattr("hpcopt.objective.network.objective.faster", kinds.__getitem__)

    def run(comm: Any) -> Any:
        objective, _ = made(comm, (2, (1, 1)), PROBLEMS[0], jacobian="auto")
        return objective.jacobian, objective.work.curvature_cost

    found = on_ranks(2, run)
    assert found[0][0] == "implicit"
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("replicas", "ranks", "words"),
    [(3, 4, "replicas = 3 does not fit 4 ranks"), (12, 12, "at least one"), (0, 2, "replicas = 0 does not fit")],
)
def test_replicas_that_cannot_be_are_refused_on_all_ranks(replicas: int, ranks: int, words: str) -> None:
    def run(comm: SimulatedCommunicator) -> str:
        with pytest.raises(UsageError, match=words) as refused:
            replicated(comm, replicas, (1, max(1, ranks // max(replicas, 1))))
        return str(refused.value)

    assert len(set(on_ranks(ranks, run))) == 1


@pytest.mark.parametrize("options", [{"weight_decay": 0.5}, {"seed": 1}, {"activation": "relu"}], ids=str)
def test_replicas_of_different_networks_are_refused_on_all_ranks(options: dict[str, Any]) -> None:
    def run(comm: Any) -> None:
        with pytest.raises(UsageError, match=f"{next(iter(options))} is .* on rank 0 and .* on rank 2"):
            replicated(comm, 2, (1, 2), **(options if comm.rank >= 2 else {}))

    on_ranks(4, run)
