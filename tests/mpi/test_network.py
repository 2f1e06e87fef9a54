"""The network on every grid of the job's ranks is the network on one rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.layout.network import network_grid
from hpcopt.objective.network.objective import NetworkObjective
from hpcopt.objective.network.passes import Kept
from hpcopt.objective.protocol import Batch
from hpcopt.solvers.registry import make_solver
from tests.support.networks import BATCH, gathered, on_grid, own, reference_value, start

pytestmark = pytest.mark.mpi

SIZES = ((5, 7, 6, 5, 4), (5, 6, 7, 4))


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_value_and_gradient_are_those_of_torch(comm: Communicator, grid: Any, sizes: Any, loss: str) -> None:
    w = start(sizes).requires_grad_()
    expected = reference_value(sizes, "sigmoid", loss, w, 0.01)
    (slope,) = torch.autograd.grad(expected, w)
    objective = on_grid(comm, grid, sizes, loss, "sigmoid", weight_decay=0.01, micro_batch=4)
    mine = own(objective, w.detach())
    value, gradient = objective.value_and_gradient(mine, objective.full_batch)
    assert value == pytest.approx(float(expected.detach()), rel=1e-13)
    assert objective.value(mine, objective.full_batch) == pytest.approx(value, rel=1e-14)
    assert comm.allgather_objects(value) == [value] * comm.size
    torch.testing.assert_close(gathered(objective, gradient), slope, rtol=1e-12, atol=1e-14)
    objective.free()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_is_replicated_has_the_same_bits_on_all_ranks(comm: Communicator, grid: Any, dtype: torch.dtype) -> None:
    """Values that the ranks of a row or column compute twice must not drift apart."""
    objective = on_grid(comm, grid, SIZES[0], dtype=dtype)
    kept: Kept = {}
    inputs = objective.inputs
    objective.network.forward(objective.network.views(objective.initial_vector()), inputs, kept)
    for block in objective.partition.blocks(comm.rank)[1:]:
        held = comm.allgather_objects((block.inputs, kept[block.number]))
        first = {group: values for group, values in reversed(held)}
        assert all(torch.equal(values, first[group]) for group, values in held)
    objective.free()


@pytest.mark.parametrize("init", ["he", "xavier", "sparse"])
def test_the_first_weights_do_not_depend_on_the_grid(comm: Communicator, alone: Any, grid: Any, init: str) -> None:
    objective = on_grid(comm, grid, SIZES[0], init=init)
    whole = on_grid(alone, (1, 1), SIZES[0], init=init).initial_vector()
    assert torch.equal(gathered(objective, objective.initial_vector()), whole)
    objective.free()


@pytest.mark.parametrize(
    "method",
    [
        ("sgd", {"learning_rate": 0.3}),
        ("lbfgs", {}),
        ("trust_region", {}),
        ("newton", {"subset": 0.5, "subset_least": 5, "cg_iterations": 8}),
    ],
    ids=str,
)
@pytest.mark.parametrize("chosen", [None, BATCH], ids=["full", "mini"])
def test_methods_take_the_same_steps_on_a_grid(
    comm: Communicator, alone: Communicator, grid: Any, method: Any, chosen: Batch | None
) -> None:
    traces = []
    for ranks, shape in ((alone, (1, 1)), (comm, grid)):
        objective = on_grid(ranks, shape, SIZES[1], weight_decay=1e-3)
        solver = make_solver(*method, 20.0)
        state, trace = solver.init(objective), []
        for _ in range(10):
            state, report = solver.step(objective, state, chosen or objective.full_batch)
            trace.append(report.loss)
        traces.append(trace)
        objective.free()
    assert traces[1] == pytest.approx(traces[0], rel=1e-10)
    assert traces[1][-1] < traces[1][0]
    assert comm.allgather_objects(traces[1]) == [traces[1]] * comm.size


def test_one_rank_with_wrong_data_is_an_error_of_all(comm: Communicator) -> None:
    width = 9 if comm.rank == comm.size - 1 else 5
    with pytest.raises(UsageError, match="this rank holds features 0 to 4 of 5"):
        NetworkObjective((5, 8, 3), "relu", "squared", torch.zeros(4, width), torch.zeros(4, 3), comm, (1, comm.size))


@pytest.mark.parametrize(
    "options", [{"memory_limit": 10**6}, {"micro_batch": 3}, {"jacobian": "implicit"}, {"seed": 1}], ids=str
)
def test_options_that_differ_between_ranks_are_an_error_of_all(comm: Communicator, options: dict[str, Any]) -> None:
    if comm.size == 1:
        pytest.skip("one rank agrees with itself")
    with pytest.raises(UsageError, match=f"{next(iter(options))} is .* on rank 0 and .* on rank {comm.size - 1}"):
        on_grid(comm, network_grid(SIZES[0], comm.size), SIZES[0], **(options if comm.rank == comm.size - 1 else {}))


def test_labels_on_one_rank_and_columns_on_another_are_an_error_of_all(comm: Communicator) -> None:
    """Both are targets, but an evaluation gathers the outputs for labels only: the ranks would wait for each other."""
    if comm.size == 1:
        pytest.skip("one rank agrees with itself")
    labels = torch.tensor([0, 1, 1])
    targets = torch.eye(2)[labels] if comm.rank == comm.size - 1 else labels
    with pytest.raises(UsageError, match=f"targets is 'labels .*' on rank 0 and 'values' on rank {comm.size - 1}"):
        NetworkObjective((5, 8, 2), "relu", "squared", torch.zeros(3, 5), targets, comm, (1, comm.size))


def test_samples_in_another_order_on_one_rank_are_seen_by_their_labels(comm: Communicator) -> None:
    if comm.size == 1:
        pytest.skip("one rank agrees with itself")
    labels = torch.tensor([0, 1, 1])
    given = labels.flip(0) if comm.rank == comm.size - 1 else labels
    with pytest.raises(UsageError, match=f"targets is 'labels .*' on rank 0 and 'labels .*' on rank {comm.size - 1}"):
        NetworkObjective((5, 8, 2), "relu", "cross_entropy", torch.zeros(3, 5), given, comm, (1, comm.size))


def test_a_grid_that_no_network_fits_is_refused_by_all(comm: Communicator) -> None:
    if comm.size == 1:
        pytest.skip("one rank fits every network")
    with pytest.raises(UsageError, match=r"No grid of \d ranks fits"):
        NetworkObjective((1, 1, 1), "relu", "squared", torch.zeros(4, 1), torch.zeros(4, 1), comm)
