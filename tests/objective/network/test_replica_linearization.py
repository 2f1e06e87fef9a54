"""Replicas that are linearised: products of the network, and Newton directions by blocks and of the whole."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from hpcopt.objective.protocol import Batch
from hpcopt.solvers.block_direction import BlockSolver
from hpcopt.solvers.newton import Newton
from tests.support.networks import SAMPLES, start
from tests.support.replicas import alone, cells, made, own, ranks_of, whole_vectors
from tests.support.simulated import on_ranks


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
