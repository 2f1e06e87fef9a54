"""Batches that grow: the same samples at the same time on any number of ranks, and a job that says so in its record."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from hpcopt.analysis.history import open_run
from hpcopt.comm.communicator import Communicator
from hpcopt.config import parse_job
from hpcopt.data.batches import BatchGrowth, BatchPlan
from hpcopt.layout.block import block
from hpcopt.train.job import PreparedJob
from hpcopt.train.sampler import Sampler

pytestmark = pytest.mark.mpi

JOB = """
[run]
epochs = 5
precision = "float64"
device = "cpu"
[data]
source = "digits"
batch = 400
overlap = 0.1
batch_growth = 1.5
batch_growth_every = 1
batch_growth_tolerance = 0.3
[model]
name = "mlp"
widths = [16]
[solver]
name = "sgd"
learning_rate = 0.2
momentum = 0.9
"""


def test_batches_of_all_ranks_are_those_of_one_however_they_grow(comm: Communicator) -> None:
    start, count = block(61, comm.size, comm.rank)[:2]
    parts = [BatchPlan(61, s, c, 10, seed=3, overlap=0.25) for s, c in ((start, count), (0, 61))]
    ours, whole = (Sampler(plan, torch.device("cpu"), BatchGrowth(1.5, 1)).begin() for plan in parts)
    while whole.epochs < 7:
        for batches in (ours, whole):
            batches.learn(1.0)
        mine, all_of_it = ours.next(), whole.next()
        found = torch.arange(count) if mine.indices is None else mine.indices
        joined = torch.cat(comm.allgather_objects(found + start))
        expected = torch.arange(61) if all_of_it.indices is None else all_of_it.indices
        assert torch.equal(joined, expected)
        assert (mine.key, mine.position, mine.total) == (all_of_it.key, all_of_it.position, len(expected))
    assert whole.size == 61


def test_a_job_grows_its_batches_by_its_own_losses_alike_on_any_number_of_ranks(
    comm: Communicator, alone: Communicator, shared_path: Path, tmp_path: Path
) -> None:
    prepared = PreparedJob(parse_job(JOB), comm)
    assert prepared.length() == (5, "epoch")
    ours = prepared.run(shared_path / "run")
    theirs = PreparedJob(parse_job(JOB), alone).run(tmp_path / "alone")
    assert (ours.iterations, ours.epochs) == (theirs.iterations, 5.0)
    comm.barrier()
    one, other = (open_run(path).iterations for path in (shared_path / "run", tmp_path / "alone"))
    assert one["batch"].tolist() == other["batch"].tolist()
    assert one["epoch"].tolist() == other["epoch"].tolist()
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-9)
    looks = open_run(tmp_path / "alone").evaluations
    fallen = [before - after > 0.3 for before, after in pairwise(looks["train_loss"])]
    assert True in fallen[:-1]
    assert False in fallen[:-1]
    sizes = [int(other["batch"][other["epoch"] > epoch][0]) for epoch in range(5)]
    assert [after == before for before, after in pairwise(sizes)] == fallen[:-1]
