"""Replicas of a network, each on a grid of (simulated) ranks and with a shard of the instances, are the network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hpcopt.errors import UsageError
from hpcopt.objective.network.replicas import NetworkReplicas
from hpcopt.objective.protocol import Batch
from tests.support.networks import SAMPLES, data, replicated, start
from tests.support.replicas import PROBLEMS, alone, cells, made, own, ranks_of, whole_vectors
from tests.support.simulated import SimulatedCommunicator, on_ranks

CHOSEN = [0, 3, 4, 8, 10]


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
