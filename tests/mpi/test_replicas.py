"""Replicas of a network, each cut over its own part of the job's ranks: the objective, and jobs with parallel.data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpcopt.analysis.history import open_run
from hpcopt.comm.communicator import Communicator
from hpcopt.errors import HpcoptError, UsageError
from hpcopt.layout.network import network_grid
from hpcopt.objective.network.replicas import NetworkReplicas
from hpcopt.objective.protocol import Batch
from hpcopt.train.job import PreparedJob
from tests.support.network_jobs import BLOCKS, prepared
from tests.support.networks import THREE, on_grid, positions, replicated, start

pytestmark = pytest.mark.mpi

NEWTON = ("solver.name=newton", "solver.subset=1.0", "solver.cg_iterations=12")
FIGURES = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")


@pytest.fixture
def replicas(comm: Communicator) -> int:
    """Two where the ranks can be halved, else one a rank."""
    if comm.size == 1:
        pytest.skip("one rank holds one replica")
    return 2 if comm.size % 2 == 0 else comm.size


@pytest.mark.parametrize("chosen", [None, [0, 3, 4, 8, 10], [10]], ids=["full", "mini", "fewer than replicas"])
@pytest.mark.parametrize("jacobian", ["explicit", "implicit"])
@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
def test_value_gradient_and_products_are_those_of_one_rank(
    comm: Communicator, alone: Communicator, replicas: int, loss: str, jacobian: str, chosen: list[int] | None
) -> None:
    grid, found = network_grid(THREE, comm.size // replicas), []
    options = {"weight_decay": 0.01, "jacobian": jacobian}
    for objective in (
        replicated(comm, replicas, grid, THREE, loss, **options),
        on_grid(alone, (1, 1), THREE, loss, **options),
    ):
        w, v, batch, first = start(THREE), start(THREE, 8), objective.full_batch, 0
        if isinstance(objective, NetworkReplicas):
            mine, first = positions(objective.replica.partition, objective.replica.comm.rank), objective.shards()[0]
            w, v = w[mine], v[mine]
        if chosen:
            own = [i - first for i in chosen if 0 <= i - first < objective.shards()[1]]
            batch = Batch(torch.tensor(own, dtype=torch.int64), len(own), len(chosen))
        value, gradient = objective.value_and_gradient(w, batch)
        linear = objective.linearize(w, batch)
        pushed = linear.jvp(v)
        vectors = gradient, linear.gauss_newton(v), linear.vjp(pushed.sin())
        found.append((value, vectors, linear.curvatures(torch.stack([w, v])), pushed))
        objective.free()
    (value, vectors, curvature, pushed), (expected, wanted, bend, outputs) = found
    values, pieces = zip(*comm.allgather_objects((value, pushed)), strict=True)
    assert list(values) == [value] * comm.size
    assert value == pytest.approx(expected, rel=1e-13)
    for vector, whole in zip(vectors, wanted, strict=True):
        torch.testing.assert_close(vector, whole[mine], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(curvature, bend, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat(pieces[:: comm.size // replicas]), outputs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "settings",
    [NEWTON, ("solver.name=sgd", "solver.learning_rate=0.1", "data.batch=37"), (*NEWTON, "data.source=peaks")],
    ids=["newton", "sgd", "values"],
)
def test_a_run_is_that_of_one_rank(comm: Communicator, alone: Communicator, replicas: int, settings: Any) -> None:
    job = prepared(comm, *settings, f"parallel.data={replicas}", "debug.check_agreement=true")
    found, wanted = job.run(None), prepared(alone, *settings).run(None)
    assert isinstance(job.objective, NetworkReplicas)
    for name in (*FIGURES, "test_explained_variance"):
        expected = [row[name] for row in wanted.history]
        np.testing.assert_allclose([row[name] for row in found.history], expected, rtol=1e-8)


def test_a_rank_holds_its_features_of_the_instances_of_its_replica_only(comm: Communicator, replicas: int) -> None:
    objective = prepared(comm, "solver.name=sgd", f"parallel.data={replicas}").objective
    assert isinstance(objective, NetworkReplicas)
    assert objective.samples == 200
    replica, start = objective.replica, objective.shards()[0]
    assert len(replica.inputs) in (200 // replicas, -(-200 // replicas))
    assert replica.inputs.shape[1] <= -(-64 // replica.partition.grid.rows)
    starts = comm.allgather_objects((objective.number, start, len(replica.inputs)))
    ends = [first + count for _, first, count in sorted(set(starts))]
    assert [first for _, first, _ in sorted(set(starts))] == [0, *ends[:-1]]
    assert ends[-1] == 200


def test_blocks_of_replicas_train_and_every_rank_is_in_the_record(
    comm: Communicator, shared_path: Path, replicas: int
) -> None:
    job = prepared(comm, f"parallel.data={replicas}", "debug.check_agreement=true", more=BLOCKS)
    result = job.run(shared_path / "run")
    run = open_run(shared_path / "run")
    assert result.final.train_loss < 0.5 * result.initial.train_loss
    assert run.local_iterations.shape == (5, comm.size)
    assert (run.local_iterations[0] > 3).all()
    assert run.facts["replicas"] == replicas
    assert run.facts["grid"][0] * run.facts["grid"][1] == comm.size // replicas


@pytest.mark.mpi(min_size=2)
def test_replicas_that_drift_apart_are_found_out(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> None:
    mean = NetworkReplicas.mean
    monkeypatch.setattr(NetworkReplicas, "mean", lambda self, *given: mean(self, *given) + 1e-13 * self.number)
    settings = ("solver.name=sgd", f"parallel.data={comm.size}", "debug.check_agreement=true")
    with pytest.raises(HpcoptError, match="no longer agree"):
        prepared(comm, *settings).run(None)


@pytest.mark.mpi(min_size=2)
def test_a_quorum_is_one_of_all_ranks_of_all_replicas_and_is_repeated(comm: Communicator, shared_path: Path) -> None:
    of_all = f"parallel.data={comm.size}"
    slow = ["parallel.quorum=0.5", "debug.slow_rank=1", "debug.slow_seconds=0.02"]
    one = prepared(comm, of_all, *slow, more=BLOCKS).run(shared_path / "run")
    comm.barrier()
    counts = open_run(shared_path / "run").local_iterations
    assert counts[:, 1].sum() < np.delete(counts, 1, axis=1).max(axis=1).sum()
    replay = f"parallel.replay={shared_path / 'run'}"
    other = prepared(comm, of_all, replay, more=BLOCKS).run(shared_path / "again")
    assert torch.equal(one.parameters, other.parameters)
    comm.barrier()


def layouts(ranks: int) -> list[tuple[int, int]]:
    """Numbers of ranks and of replicas, from the most replicas to none."""
    middle = (ranks, ranks // 2) if ranks % 2 == 0 else (ranks - 1, 1)
    return [(ranks, ranks), (1, 1), middle, (ranks, 1)]


@pytest.mark.mpi(min_size=2)
def test_a_run_goes_on_with_other_replicas_on_other_grids(comm: Communicator, shared_path: Path) -> None:
    """One iteration on each layout, to the curve of a run in one go; only one replica writes its blocks."""
    whole = prepared(comm, *NEWTON, "run.iterations=4").run(None)
    for iterations, (ranks, replicas) in enumerate(layouts(comm.size), 1):
        part = comm.split(int(comm.rank >= ranks))
        if comm.rank < ranks:
            job: PreparedJob = prepared(part, *NEWTON, f"run.iterations={iterations}", f"parallel.data={replicas}")
            result = job.run(shared_path / "run")
            assert result.resumed_from == (iterations - 1 or None)
        part.free()
        comm.barrier()
    for name in FIGURES:
        assert getattr(result.final, name) == pytest.approx(getattr(whole.final, name), rel=1e-9)


def test_replicas_that_do_not_fit_are_refused_on_all_ranks(comm: Communicator) -> None:
    grid = f"parallel.grid=[{comm.size}, 1]"
    with pytest.raises(UsageError, match=f"parallel.data = {comm.size + 1} does not fit {comm.size} rank"):
        prepared(comm, "solver.name=sgd", f"parallel.data={comm.size + 1}")
    if comm.size > 1:
        with pytest.raises(UsageError, match=r"every replica of the network is cut over ranks / parallel.data = 1"):
            prepared(comm, "solver.name=sgd", f"parallel.data={comm.size}", grid)
        with pytest.raises(UsageError, match="each rank must own at least one"):
            prepared(comm, "solver.name=sgd", f"parallel.data={comm.size}", f"data.limit={comm.size - 1}")
