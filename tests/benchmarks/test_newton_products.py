"""The benchmark of Gauss-Newton products: what it compares is the same product, and it says what it could not do."""

from __future__ import annotations

from importlib import util
from types import ModuleType

import pytest
import torch

from benchmarks.newton import products
from benchmarks.newton.products import CURVLINOPS, FACTORS, MATRICES, Made, Problem, Times
from hpcopt.comm.communicator import Communicator


@pytest.fixture
def problem(comm: Communicator) -> Problem:
    """A network small enough to be evaluated often."""
    return Problem([7, 5, 4, 3], 12, torch.float64, comm)


def times_of(**seconds: float) -> dict[str, list[Times]]:
    names = {"factors": FACTORS, "matrices": MATRICES, "curvlinops": CURVLINOPS}
    return {names[key]: [Times(each, each / 2)] * 20 for key, each in seconds.items()}


def test_all_variants_are_the_same_product(problem: Problem) -> None:
    made = products.make(problem)
    assert set(made) >= set(products.VARIANTS) - {CURVLINOPS}
    assert products.largest_difference(problem, made) < 1e-12


def test_a_variant_that_differs_is_seen(problem: Problem) -> None:
    made = products.make(problem)
    product = made["hpcopt, any torch model"].product
    made["hpcopt, any torch model"] = Made(lambda: 1.01 * product(), 0.0)
    assert products.largest_difference(problem, made) == pytest.approx(0.01, rel=1e-6)


def test_the_network_and_the_torch_model_have_the_same_loss(problem: Problem) -> None:
    loss = torch.nn.functional.cross_entropy(problem.model(problem.inputs), problem.labels).item()
    assert problem.network.value(problem.w, problem.network.full_batch) == pytest.approx(loss, rel=1e-12)


def test_every_variant_has_a_time_in_every_round(problem: Problem) -> None:
    made = products.make(problem)
    times = products.measure(made, 5)
    assert {name: len(own) for name, own in times.items()} == dict.fromkeys(made, 5)
    assert [row[0] for row in products.rows(times, made)] == list(made)


def test_without_curvlinops_its_row_is_missing_and_the_report_says_so(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(name: str) -> ModuleType | None:
        return None

    monkeypatch.setattr(util, "find_spec", found)
    assert CURVLINOPS not in products.make(problem)
    assert "not measured" in products.verdicts(times_of(factors=1.0, matrices=1.0))[0]


def test_a_target_is_met_or_not_by_the_median_of_the_ratios() -> None:
    close = products.verdicts(times_of(factors=1.0, curvlinops=2.0, matrices=1.0 / 1.36))
    assert close[0].endswith("0.50 (target: at most 0.5): met")
    assert close[1].endswith("1.36 (target: at most 1.35): NOT met")


def test_the_factors_pay_once_they_have_made_up_for_their_making() -> None:
    made = {FACTORS: Made(torch.Tensor, 10.0), CURVLINOPS: Made(torch.Tensor, 1.0)}
    assert products.pays_from(times_of(factors=1.0, curvlinops=3.0), made, CURVLINOPS) == "5"
    assert products.pays_from(times_of(factors=1.0, curvlinops=1.0), made, CURVLINOPS) == "never"


def test_figures_from_a_busy_machine_are_called_so() -> None:
    assert "busy with other work" in products.conditions(3.0, 4.0)
    assert "busy" not in products.conditions(0.05, 1.0)
