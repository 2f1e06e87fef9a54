"""Within a step nothing waits for a device but what decides, whatever the number of pieces of a batch."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.config import parse_job
from hpcopt.kernels import choice
from hpcopt.kernels.choice import TORCH
from hpcopt.train.job import PreparedJob
from tests.support.waits import Waits

OPTIONS = {
    "sgd": "learning_rate = 0.1",
    "adam": "learning_rate = 0.01",
    "lars": "learning_rate = 1.0",
    "nlcg, paper": 'preset = "paper"',
    "newton, plain": 'preconditioner = "none"',
}
EVALUATION = {"shard._total": 1, "reductions.read": 1}
"""A gradient: the loss of the own samples, and loss and flag from the buffer that is reduced."""
DECISIONS = {
    *("shard._total", "reductions.read", "reductions.__init__"),
    *("vectors.dot", "vectors.inner", "linearization._bilinear", "lars.scale_layers", "reductions.combine"),
    *("kronecker._finished", "kronecker.end", "kronecker.balance", "kronecker.<listcomp>", "kronecker.inverses"),
    *("kronecker.shifted_inverse", "kronecker.__init__", "kronecker._invert", "apts._judge"),
}
"""Where methods learn numbers by which they decide: losses, products, and whether factors could be inverted."""


@pytest.fixture(autouse=True)
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps whose sums stay where the vectors are; those in C leave theirs where a processor has them already."""
    monkeypatch.setattr(choice, "_on_processor", lambda: TORCH)


def step(method: str, comm: Communicator, micro_batch: int) -> tuple[Counter[str], int]:
    """The waits of one step after a few others, and its inner iterations."""
    text = '[run]\ndevice = "cpu"\niterations = 9\n[data]\nsource = "digits"\nbatch = 300\n[model]\nname = "mlp"\n'
    text += f'widths = [20]\n[loss]\nmicro_batch = {micro_batch}\n[solver]\nname = "{method.split(",")[0]}"\n'
    prepared = PreparedJob(parse_job(text + OPTIONS.get(method, "")), comm)
    objective, solver, batches = prepared.objective, prepared.solver, prepared.sampler.begin()
    state = solver.init(objective)
    for _ in range(3):
        state, _ = solver.step(objective, state, batches.next())
    batch = batches.next()
    for name, value in state.items():
        if "gram" in name and isinstance(value, torch.Tensor):
            value._own = True  # type: ignore[attr-defined]  # small matrices are the processor's
    with Waits() as waits:
        _, report = solver.step(objective, state, batch)
    found = Counter({".".join(place.split(".")[-2:]): count for place, count in waits.places.items()})
    return found, report.inner_iterations


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


@pytest.mark.parametrize("method", ["lars", "trust_region", "lbfgs", "apts", "newton", "nlcg"])
def test_methods_wait_for_what_decides_alone(comm: Communicator, method: str) -> None:
    assert set(step(method, comm, 1000)[0]) <= DECISIONS


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
