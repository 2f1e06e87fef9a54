"""The choice between factors of the Jacobian and sweeps: measured, the same on all ranks, and free of traces."""

from __future__ import annotations

from typing import Any

import pytest

from hpcopt.objective.network.explicit import bytes_each
from hpcopt.objective.network.jacobian import KINDS, Cost, faster, measure
from tests.support.networks import FOUR, THREE, on_grid, replicated, whole_layout
from tests.support.simulated import on_ranks

GIB = 2**30


@pytest.mark.parametrize(("products", "found"), [(1, "implicit"), (9, "implicit"), (11, "explicit"), (100, "explicit")])
def test_factors_pay_where_their_products_are_enough(products, found):
    assert faster({"explicit": Cost(12.0, 1.0), "implicit": Cost(2.0, 2.0)}, products) == found
    assert faster({"explicit": Cost(1.0, 1.0), "implicit": Cost(1.0, 1.0)}, products) == "explicit"


@pytest.mark.parametrize(("sizes", "loss"), [(FOUR, "squared"), (THREE, "cross_entropy")], ids=str)
def test_both_are_measured_alike_on_all_ranks_and_no_work_is_counted(sizes, loss):
    def run(comm: Any) -> Any:
        objective = on_grid(comm, (2, 2), sizes, loss)
        objective.value(objective.initial_vector(), objective.full_batch)
        before, work = objective.work.gradient_equivalents, objective.work
        costs = measure(objective, GIB)
        assert objective.work.gradient_equivalents == before > 0
        assert objective.work.curvature_cost == work.curvature_cost
        return costs

    results = on_ranks(4, run)
    assert all(costs == results[0] for costs in results)
    assert set(results[0]) == set(KINDS)
    assert all(cost.setup > 0 and cost.product > 0 for cost in results[0].values())


@pytest.mark.parametrize("cheap", ["explicit", "implicit"])
def test_an_objective_takes_what_was_found(monkeypatch, cheap):
    costs = {name: Cost(1.0, 1.0 if name == cheap else 2.0) for name in KINDS}
    monkeypatch.setattr("hpcopt.objective.network.objective.measure", lambda objective, limit: costs)

    def run(comm: Any) -> Any:
        objective, same = (on_grid(comm, (1, 2), jacobian=name) for name in ("auto", cheap))
        assert objective.jacobian == cheap
        assert objective.work == same.work
        return type(objective.linearize(objective.initial_vector(), objective.full_batch))

    assert on_ranks(2, run) == [KINDS[cheap]] * 2


def test_factors_that_would_not_fit_are_not_taken_where_the_choice_is_free(monkeypatch):
    """They would be made anew in every product, which the measurement on a few instances does not show."""
    costs = {"explicit": Cost(1.0, 1.0), "implicit": Cost(1.0, 2.0)}
    monkeypatch.setattr("hpcopt.objective.network.objective.measure", lambda objective, limit: costs)

    def run(comm: Any) -> Any:
        limit = 3 * 8 * (3 + 4 + 3 + 3 + 3 * (4 + 3 + 3 + 1))  # three instances of FOUR on two rows and columns
        found = []
        for jacobian in ("auto", "explicit"):
            objective = on_grid(comm, (2, 2), FOUR, jacobian=jacobian, memory_limit=limit)
            few, all_of_them = objective.subset(objective.full_batch, 3, 0), objective.full_batch
            found += [type(objective.linearize(objective.initial_vector(), batch)) for batch in (few, all_of_them)]
        return found

    chosen, wanted = [KINDS["explicit"], KINDS["implicit"]], [KINDS["explicit"]] * 2
    assert on_ranks(4, run) == [chosen + wanted] * 4


def test_where_it_is_known_that_factors_will_not_fit_nothing_is_measured_and_the_choice_is_told(monkeypatch):
    def measured(objective: Any, limit: int) -> Any:
        raise AssertionError("there is nothing to choose")

    monkeypatch.setattr("hpcopt.objective.network.objective.measure", measured)

    def run(comm: Any) -> Any:
        objective = on_grid(comm, (1, 2), FOUR, jacobian="auto", memory_limit=4000, instances=11)
        return objective.jacobian, type(objective.linearize(objective.initial_vector(), objective.full_batch))

    assert on_ranks(2, run) == [("implicit", KINDS["implicit"])] * 2


def test_replicas_of_which_one_could_keep_its_factors_linearise_in_one_way():
    def run(comm: Any) -> Any:
        limit = 5 * bytes_each(whole_layout(FOUR), 8)  # the replicas have six instances and five
        options = {"jacobian": "auto", "factors": "bfloat16", "memory_limit": limit}
        objective = replicated(comm, 2, (1, 1), FOUR, **options)
        objective.replica.use_jacobian("explicit")
        return objective.linearize(objective.initial_vector(), objective.full_batch).exact

    assert on_ranks(2, run) == [None, None]
