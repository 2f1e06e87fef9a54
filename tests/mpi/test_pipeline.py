"""Layers on ranks of their own, on real ranks: the network of one process, and jobs that move between the mappings."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcopt.analysis.history import open_run
from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.objective.network.objective import NetworkObjective
from hpcopt.train.protocol import Result
from tests.support.network_jobs import BLOCKS, prepared
from tests.support.networks import FOUR, ONE, THREE, assemble, on_grid, on_own_ranks, positions, start

pytestmark = pytest.mark.mpi

TWO = (5, 7, 3)
CUTS: dict[int, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {
    1: [(ONE, (1, 1))],
    2: [(ONE, (1, 2)), (TWO, (1, 1, 1))],
    3: [(TWO, (1, 1, 2)), (THREE, (1, 1, 1, 1))],
    4: [(THREE, (2, 1, 1, 1)), (TWO, (1, 2, 1)), (FOUR, (1, 1, 1, 1, 1))],
}

JOB = ["model.widths=[9]", "data.limit=120", "run.iterations=4", "run.evaluate_every=4"]
FULL = ["solver.name=newton", "solver.subset=0.5", "solver.subset_least=1", "solver.cg_iterations=10"]
PAPER = ["parallel.mapping=paper"]


def train(comm: Communicator, path: Path | None, *settings: str, more: str = "") -> Result:
    result = prepared(comm, *JOB, *settings, more=more).run(path)
    comm.barrier()
    return result


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("jacobian", ["explicit", "implicit"])
@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
def test_the_network_is_that_of_one_process(
    comm: Communicator, alone: Communicator, number: int, jacobian: str, loss: str
) -> None:
    if number >= len(CUTS.get(comm.size, [])):
        pytest.skip(f"{comm.size} ranks are cut in fewer ways")
    sizes, split = CUTS[comm.size][number]
    whole = on_grid(alone, (1, 1), sizes, loss, weight_decay=0.01)
    w, v = start(sizes), start(sizes, 8)
    objective = on_own_ranks(comm, split, sizes, loss, weight_decay=0.01, micro_batch=6, jacobian=jacobian)
    mine = positions(objective.partition, comm.rank)

    def numbers(network: NetworkObjective, own: torch.Tensor) -> tuple[float, float, list[torch.Tensor]]:
        value, gradient = network.value_and_gradient(w[own], network.full_batch)
        linear = network.linearize(w[own], network.full_batch)
        pushed = linear.jvp(v[own])
        vectors = [gradient, linear.gauss_newton(v[own]), linear.vjp(pushed.sin())]
        outputs = [network.predict(w[own], network.full_batch), linear.curvatures(v[own][None]), pushed]
        if network.comm.size > 1:
            vectors = [assemble(network.partition, comm.allgather_objects(vector)) for vector in vectors]
        return value, network.value(w[own], network.full_batch), vectors + outputs

    found, expected = numbers(objective, mine), numbers(whole, torch.arange(len(w)))
    assert found[:2] == pytest.approx(expected[:2], rel=1e-13)
    for one, other in zip(found[2], expected[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    if jacobian == "explicit":
        block = objective.linearize(w[mine], objective.full_batch).block.product(v[mine])
        inside = torch.zeros_like(v)
        inside[mine] = v[mine]
        product = whole.linearize(w, whole.full_batch).gauss_newton(inside)[mine]
        torch.testing.assert_close(block, product, rtol=1e-12, atol=1e-13)
    objective.free()


@pytest.mark.mpi(min_size=2)
def test_a_run_is_that_of_a_grid_and_goes_on_on_one(comm: Communicator, shared_path: Path) -> None:
    """Saved on each mapping in turn, one iteration each, to the curve of a run in one go."""
    whole = train(comm, None, *FULL, "run.iterations=3")
    for iterations, mapping in enumerate(("paper", "grid", "paper"), 1):
        settings = [f"parallel.mapping={mapping}", f"run.iterations={iterations}"]
        result = train(comm, shared_path / "run", *FULL, *settings)
        assert result.resumed_from == (iterations - 1 or None)
    for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy"):
        assert getattr(result.final, name) == pytest.approx(getattr(whole.final, name), rel=1e-9)


def test_replicas_may_be_cut_so(comm: Communicator) -> None:
    if comm.size != 4:
        pytest.skip("two replicas of a network of two layers are on 4 ranks")
    settings = ["solver.name=sgd", "solver.learning_rate=0.1", "parallel.data=2"]
    found, expected = train(comm, None, *settings, *PAPER), train(comm, None, *settings)
    assert found.final.test_loss == pytest.approx(expected.final.test_loss, rel=1e-10)
    assert found.final.train_accuracy == expected.final.train_accuracy


@pytest.mark.mpi(min_size=2)
def test_no_rank_holds_two_layers_and_only_the_first_have_features(comm: Communicator) -> None:
    objective = prepared(comm, *JOB, "solver.name=sgd", *PAPER).objective
    assert isinstance(objective, NetworkObjective)
    (held,) = objective.partition.blocks(comm.rank)
    assert objective.size == (held.inputs.count + held.biased) * held.outputs.count
    assert objective.inputs.shape[1] == (held.inputs.count if held.number == 1 else 0)
    assert objective.targets.shape[1] == (held.outputs.count if held.number == 2 else 0)
    split = objective.layout["split"]
    assert objective.layout["mapping"] == "paper"
    assert sum(before * after for before, after in pairwise(split)) == comm.size


@pytest.mark.mpi(min_size=2)
def test_a_run_in_which_a_rank_was_slow_is_repeated(comm: Communicator, shared_path: Path) -> None:
    settings = [*PAPER, "solver.cg_tolerance=1e-3"]
    slow = ["parallel.quorum=0.5", "debug.slow_rank=0", "debug.slow_seconds=0.02"]
    result = train(comm, shared_path / "run", *settings, *slow, more=BLOCKS)
    counts = open_run(shared_path / "run").local_iterations
    assert (counts >= 3).all()
    assert result.final.train_loss < result.initial.train_loss
    again = train(comm, shared_path / "again", *settings, f"parallel.replay={shared_path / 'run'}", more=BLOCKS)
    assert torch.equal(result.parameters, again.parameters)


@pytest.mark.mpi(min_size=2)
def test_lock_step_ends_every_run_on_the_same_iterations(comm: Communicator, shared_path: Path) -> None:
    settings = [*PAPER, "parallel.quorum=0.25", "parallel.termination=lock_step"]
    slow = ["debug.slow_rank=1", "debug.slow_seconds=0.003"]
    one = train(comm, shared_path / "one", *settings, more=BLOCKS)
    other = train(comm, shared_path / "other", *settings, *slow, more=BLOCKS)
    assert torch.equal(one.parameters, other.parameters)
    counts = [open_run(shared_path / name).local_iterations for name in ("one", "other")]
    np.testing.assert_array_equal(*counts)
    train(comm, shared_path / "free", *PAPER, more=BLOCKS)
    if comm.size > 2:
        assert counts[0].max(axis=1).sum() < open_run(shared_path / "free").local_iterations.max(axis=1).sum()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["parallel.split=[1, 1]"], r'parallel.split = \[1, 1\] has no effect with parallel.mapping = "grid"'),
        ([*PAPER, "parallel.grid=[1, 1]"], r'parallel.grid = \[1, 1\] has no effect with parallel.mapping = "paper"'),
        ([*PAPER, "parallel.split=[1, 1]"], "does not fit a network with sizes"),
        ([*PAPER, "parallel.split=[1, 99, 1]"], "99 groups"),
        ([*PAPER, "parallel.split=[0, 1, 1]"], "whole numbers of at least 1"),
        ([*PAPER, "parallel.pipeline=0"], "parallel.pipeline = 0 is not allowed"),
        ([*PAPER, "parallel.layout=data"], 'mapping = "paper" needs parallel.layout = "variables"'),
        ([*PAPER, "model.widths=[5, 5, 5, 5, 5, 5, 5]"], "each of the 8 layers"),
        ([*PAPER, "solver.name=apts"], "varies whole layers on each rank"),
    ],
)
def test_what_cannot_be_is_refused_in_one_paragraph(comm: Communicator, settings: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        prepared(comm, *JOB, "solver.name=sgd", *settings)
    assert "\n" not in str(refused.value)
