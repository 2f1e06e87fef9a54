"""Optimisers that take a model, on several ranks: the same steps as on one, and errors that all ranks see."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from mpi4py import MPI

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.optim import NLCG, Newton
from tests.support.closures import same_everywhere, unequal, values_of
from tests.support.problems import samples, small_network

pytestmark = pytest.mark.mpi


METHODS: list[tuple[Any, dict[str, Any]]] = [
    (Newton, {"subset": 0.5, "subset_least": 1}),
    (NLCG, {"subset": 0.5, "subset_least": 1, "factor_samples": 20}),
]


def trained(
    method: Any, comm: Communicator, data: tuple[torch.Tensor, torch.Tensor], **options: Any
) -> tuple[list[float], Any]:
    """Losses of a few steps and the parameters after them."""
    model = small_network(seed=comm.rank)
    optimizer = method(model, "cross_entropy", comm=comm, weight_decay=0.01, **options)
    return [optimizer.step(*data) for _ in range(6)], values_of(model)


@pytest.mark.parametrize("full_batch", [True, False])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        (Newton, {}),
        (Newton, {"subset": 0.3, "subset_least": 1}),
        (Newton, {"combine": False, "micro_batch": 4}),
        (NLCG, {"subset": 0.3, "subset_least": 1, "factor_samples": 20}),
        (NLCG, {"micro_batch": 4}),
    ],
)
def test_steps_are_those_of_one_rank_with_all_samples(
    comm: Communicator, method: Any, full_batch: bool, options: dict[str, Any]
) -> None:
    ours, w = trained(method, comm, unequal(comm), full_batch=full_batch, **options)
    theirs, v = trained(method, Communicator(MPI.COMM_SELF), samples(), full_batch=full_batch, **options)
    assert ours == pytest.approx(theirs, rel=1e-9)
    torch.testing.assert_close(w, v, rtol=1e-7, atol=1e-8)
    assert same_everywhere(comm, w)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(("method", "options"), METHODS)
def test_a_rank_may_have_no_sample_in_a_batch(comm: Communicator, method: Any, options: dict[str, Any]) -> None:
    inputs, targets = samples()
    count = 0 if comm.rank == comm.size - 1 else 5
    mine = slice(5 * comm.rank, 5 * comm.rank + count)
    losses, w = trained(method, comm, (inputs[mine], targets[mine]), **options)
    assert losses[-1] < losses[0]
    assert same_everywhere(comm, w)


class FailsOnOneRank(torch.nn.Module):
    """A network that raises from one of its calls on, on the last rank, while it is armed."""

    def __init__(self, comm: Communicator, at: int) -> None:
        super().__init__()
        self.inner, self.left = small_network(), at if comm.rank == comm.size - 1 else math.inf
        self.armed = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= self.armed
        if self.armed and self.left <= 0:
            raise MemoryError("this rank is full")
        found: torch.Tensor = self.inner(x)
        return found


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize(("method", "options"), METHODS)
def test_an_exception_of_one_ranks_model_is_raised_on_all(
    comm: Communicator, method: Any, options: dict[str, Any], at: int
) -> None:
    """In the factors, the gradient, the memory estimate, the curvature, or a trial: nobody waits for anybody."""
    model = FailsOnOneRank(comm, at)
    optimizer = method(model, "cross_entropy", comm=comm, **options)
    inputs, targets = unequal(comm)
    optimizer.step(inputs, targets)
    before, model.armed = values_of(model), True
    with pytest.raises(RuntimeError, match=f"(?s)rank {comm.size - 1}.*this rank is full"):
        optimizer.step(inputs, targets)
    assert torch.equal(values_of(model), before)
    model.armed = False
    optimizer.step(inputs, targets)
    assert same_everywhere(comm, values_of(model))


@pytest.mark.mpi(min_size=2)
def test_samples_that_do_not_fit_on_one_rank_are_refused_on_all(comm: Communicator) -> None:
    optimizer = Newton(small_network(), "cross_entropy", comm=comm)
    inputs, targets = unequal(comm)
    wrong = targets + 100 if comm.rank == 1 else targets
    with pytest.raises(UsageError, match=r"rank 1.*label 10\d of sample 0"):
        optimizer.step(inputs, wrong)
    optimizer.step(inputs, targets)


@pytest.mark.mpi(min_size=2)
def test_different_optimisers_are_refused_on_all_ranks(comm: Communicator) -> None:
    with pytest.raises(UsageError, match="rank 0 and rank 1 have different optimisers"):
        Newton(small_network(), "cross_entropy", comm=comm, damping=1.0 + (comm.rank == 1))


@pytest.mark.mpi(min_size=2)
def test_ranks_at_different_steps_are_refused_on_all(comm: Communicator) -> None:
    optimizer = Newton(small_network(), "cross_entropy", comm=comm)
    fresh = optimizer.state_dict()
    fresh["state"][0] = {key: v.clone() if hasattr(v, "clone") else v for key, v in fresh["state"][0].items()}
    optimizer.step(*unequal(comm))
    if comm.rank == 1:
        optimizer.load_state_dict(fresh)
    with pytest.raises(UsageError, match="not at the same step"):
        optimizer.step(*unequal(comm))


def test_a_state_of_rank_0_serves_all_ranks(comm: Communicator) -> None:
    def made() -> tuple[torch.nn.Module, Newton]:
        model = small_network()
        return model, Newton(model, "cross_entropy", comm=comm, full_batch=True, subset=0.3, subset_least=1)

    model, optimizer = made()
    for _ in range(2):
        optimizer.step(*unequal(comm))
    saved = comm.broadcast_object((model.state_dict(), optimizer.state_dict()))
    expected = [optimizer.step(*unequal(comm)) for _ in range(3)]
    again, other = made()
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    assert [other.step(*unequal(comm)) for _ in range(3)] == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(values_of(again), values_of(model), rtol=1e-9, atol=1e-10)
