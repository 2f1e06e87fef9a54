"""Within a step nothing waits for a device but what decides, whatever the number of pieces of a batch."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from tests.support.waits import Waits, after_some_steps, as_on_a_device, counted

EVALUATION = {"shard._total": 1}
"""A gradient of a rank that is alone: the loss of its samples."""
DECISIONS = {
    *("shard._total", "reductions.read", "reductions.__init__"),
    *("vectors.dot", "vectors.inner", "linearization._bilinear", "lars.scale_layers", "reductions.combine"),
    *("kronecker._finished", "kronecker.end", "kronecker.balance", "kronecker.<listcomp>", "kronecker.inverses"),
    *("kronecker.shifted_inverse", "kronecker.__init__", "kronecker._invert", "apts._judge"),
}
"""Where methods learn numbers by which they decide: losses, products, and whether factors could be inverted."""


@pytest.fixture(autouse=True)
def _device(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_device(monkeypatch)


def step(method: str, comm: Communicator, micro_batch: int) -> tuple[Counter[str], int]:
    return counted(after_some_steps(method, comm, "cpu", micro_batch))


@pytest.mark.parametrize(
    ("method", "more"),
    [("sgd", {"vectors.dot": 1}), ("adam", {"vectors.dot": 1}), ("nlcg, paper", {"vectors.inner": 2})],
)
@pytest.mark.parametrize("micro_batch", [1000, 40])
def test_a_step_without_trials_waits_for_a_gradient_and_its_products(
    comm: Communicator, method: str, more: dict[str, int], micro_batch: int
) -> None:
    assert step(method, comm, micro_batch)[0] == Counter(EVALUATION | more)


def test_newton_waits_once_an_iteration_of_conjugate_gradients(comm: Communicator) -> None:
    found, iterations = step("newton, plain", comm, 1000)
    assert iterations >= 3
    assert iterations <= found.pop("vectors.inner") <= iterations + 3
    assert sum(found.values()) <= 9


def test_slimtrain_waits_for_sums_of_features_and_the_last_layer(comm: Communicator) -> None:
    found, _ = step("slimtrain", comm, 1000)
    assert found == Counter({"last_layer.weights": 1, "last_layer.normal": 3, "vectors.dot": 1} | EVALUATION)


@pytest.mark.parametrize("method", ["lars", "trust_region", "lbfgs", "apts", "newton", "nlcg"])
def test_methods_wait_for_what_decides_alone(comm: Communicator, method: str) -> None:
    assert set(step(method, comm, 1000)[0]) <= DECISIONS


def test_arrays_of_the_processor_do_not_meet_those_of_a_device() -> None:
    x = torch.ones(3)
    with Waits() as waits:
        host = torch.zeros(3)
        x.copy_(host)
        x * torch.tensor(2.0)
        assert not waits.mixed
        x + host.to("cpu")
    assert sum(waits.mixed.values()) == 1


def test_what_is_computed_from_fetched_numbers_is_the_processors() -> None:
    x = torch.ones(3)
    with Waits() as waits:
        host = x.cpu() * 2
        assert float(host.sum()) == 6
        assert torch.tensor([1.0]).tolist() == [1.0]
    assert sum(waits.places.values()) == 1
    with Waits() as waits:
        assert bool((x * torch.ones(3)).sum() > 2)
        assert x.masked_select(x > 0).tolist() == [1.0, 1.0, 1.0]
    assert sum(waits.places.values()) == 3
