"""What Newton asks of an objective, on several ranks: the same subsets, products and curvatures as on one."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from mpi4py import MPI

from hpcopt.analysis.history import open_run
from hpcopt.comm.communicator import Communicator
from hpcopt.config import parse_job
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Batch
from hpcopt.train.job import PreparedJob
from tests.support.grids import deep_network, divides, mini_batches, on_grid
from tests.support.problems import SAMPLES, sharded

pytestmark = pytest.mark.mpi


def chosen(objective: DataParallelObjective, batch: Batch) -> list[int]:
    """Numbers in the whole set of the samples of a batch, over all ranks; each rank's shard is known by its inputs."""
    everything = sharded(Communicator(MPI.COMM_SELF)).shard.inputs.tolist()
    own = [row for inputs, _ in objective.shard.chunks(batch) for row in inputs.tolist()]
    return sorted(everything.index(row) for rows in objective.comm.allgather_objects(own) for row in rows)


@pytest.mark.parametrize("mini", [True, False])
@pytest.mark.parametrize("size", [1, 4, 9, 100])
def test_a_subset_is_the_same_samples_on_any_number_of_ranks(comm: Communicator, mini: bool, size: int) -> None:
    ours, theirs = sharded(comm, seed=3), sharded(Communicator(MPI.COMM_SELF), seed=3)
    for number, (mine, its) in enumerate(zip(*(mini_batches(each, 10, 3) for each in (ours, theirs)), strict=True)):
        mine, its = (mine, its) if mini else (ours.full_batch, theirs.full_batch)
        subset, expected = ours.subset(mine, size, number), theirs.subset(its, size, number)
        assert subset.total == expected.total == len(chosen(ours, subset))
        assert chosen(ours, subset) == chosen(theirs, expected)


def test_a_cycle_takes_every_sample_once(comm: Communicator) -> None:
    objective = sharded(comm)
    cycle = [chosen(objective, objective.subset(objective.full_batch, 9, number)) for number in range(5)]
    assert sorted(chain(*cycle)) == list(range(SAMPLES))


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_ranks_that_share_samples_share_the_subset(comm: Communicator, shards: int) -> None:
    divides(comm, shards)
    ours, theirs = on_grid(comm, shards), sharded(Communicator(MPI.COMM_SELF), model=deep_network())
    subset, expected = (objective.subset(objective.full_batch, 9, 2) for objective in (ours, theirs))
    assert chosen(ours, subset) == chosen(theirs, expected)
    w = theirs.initial_vector()
    torch.testing.assert_close(
        ours.linearize(w, subset).gauss_newton(w), theirs.linearize(w, expected).gauss_newton(w), rtol=1e-9, atol=1e-12
    )


def test_curvatures_are_those_of_one_rank_and_of_the_products(comm: Communicator) -> None:
    ours = sharded(comm, weight_decay=0.3)
    theirs = sharded(Communicator(MPI.COMM_SELF), weight_decay=0.3)
    d = torch.randn(2, ours.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for objective in (ours, theirs):
        linear = objective.linearize(objective.initial_vector(), objective.subset(objective.full_batch, 12, 1))
        calls = objective.comm.ledger.totals().calls
        found.append(linear.curvatures(d))
        assert objective.comm.ledger.totals().calls == calls + 1
        products = torch.stack([linear.gauss_newton(each) for each in d])
        torch.testing.assert_close(found[-1], d @ products.T, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-12)
    assert comm.allgather_objects(found[0].tolist()) == [found[0].tolist()] * comm.size


JOB = """
[run]
iterations = 10
evaluate_every = 5
device = "cpu"
[data]
source = "digits"
test = 0.2
[model]
widths = [32]
[loss]
weight_decay = 1e-4
[solver]
name = "newton"
subset = 0.25
subset_least = 1
cg_iterations = 15
"""


def test_a_job_trains_and_its_record_tells_of_every_step(comm: Communicator, shared_path: Path) -> None:
    result = PreparedJob(parse_job(JOB), comm).run(shared_path / "run")
    assert result.final.test_accuracy is not None
    assert result.final.test_accuracy > 0.9
    comm.barrier()
    steps = open_run(shared_path / "run").iterations
    assert len(steps) == 10
    assert np.isfinite(steps["damping"]).all()
    assert set(steps["accepted"]) == {1}
    assert (steps["loss_after"] < steps["loss"]).all()
    assert (steps["inner_iterations"] >= 1).all()
    assert (steps["inner_iterations"] <= 15).all()
    assert np.isnan(steps["radius"]).all()
    gained, promised = steps["loss"] - steps["loss_after"], steps["predicted"]
    np.testing.assert_allclose(steps["rho"], gained / promised, rtol=1e-2)
    # A product on a quarter of the samples for each iteration, half of one for each direction of the combination, and
    # half of one for the graphs.
    products = np.diff(steps["curvature_products"], prepend=0.0)
    halves = np.where(np.arange(10) == 0, 1.0, 1.5)
    np.testing.assert_allclose(products, 0.25 * (steps["inner_iterations"] + halves), rtol=0.01)
