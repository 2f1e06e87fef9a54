"""Augmented images on several ranks: those of one rank, whoever holds them, and the same in a run that goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mpi4py import MPI

from hpcopt.comm.communicator import Communicator
from hpcopt.config import parse_job
from hpcopt.data.batches import BatchPlan
from hpcopt.errors import UsageError
from hpcopt.layout.block import block
from hpcopt.objective.augmentation import CropAndFlip
from hpcopt.train.job import PreparedJob
from hpcopt.train.sampler import Sampler
from tests.support.problems import SAMPLES, augmented
from tests.support.resuming import Case, assert_same_bits, run_in_pieces

pytestmark = pytest.mark.mpi

JOB = """
[run]
iterations = 4
precision = "float64"
device = "cpu"
[data]
source = "digits"
limit = 101
augment = "crop_flip"
standardize = "image"
batch = 40
[model]
widths = [5, 4, 4]
"""


@pytest.mark.parametrize("batch", [10, None])
def test_values_and_gradients_do_not_depend_on_the_ranks(comm: Communicator, batch: int | None) -> None:
    found = []
    for group in (comm, Communicator(MPI.COMM_SELF)):
        objective = augmented(group)
        start, count = block(SAMPLES, group.size, group.rank)[:2]
        batches = Sampler(BatchPlan(SAMPLES, start, count, batch, seed=3, overlap=0.25), torch.device("cpu")).begin()
        w = objective.initial_vector()
        found.append([objective.value_and_gradient(w, batches.next()) for _ in range(6)])
    for (value, gradient), (other, other_gradient) in zip(*found, strict=True):
        assert value == pytest.approx(other, rel=1e-13)
        torch.testing.assert_close(gradient, other_gradient, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("layout", ["data", "variables"])
def test_a_job_augments_every_sample_by_its_place_in_the_set(comm: Communicator, layout: str) -> None:
    """Gradients of the job on all ranks are those of the job on one."""
    settings = ["solver.name=apts", f"parallel.layout={layout}", f"parallel.data={1 + (comm.size % 2 == 0)}"]
    settings = settings if layout == "variables" else []
    ours, alone = PreparedJob(parse_job(JOB, settings), comm), PreparedJob(parse_job(JOB), Communicator(MPI.COMM_SELF))
    assert isinstance(ours.objective.shard.augment, CropAndFlip)
    w = alone.objective.initial_vector()
    batches = ours.sampler.begin(), alone.sampler.begin()
    for _ in range(4):
        found, want = (
            job.objective.value_and_gradient(w, each.next()) for job, each in zip((ours, alone), batches, strict=True)
        )
        assert found[0] == pytest.approx(want[0], rel=1e-12)
        torch.testing.assert_close(found[1], want[1], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("case", [("apts", 10), ("trust_region", "full")], ids=str)
def test_a_run_goes_on_to_the_same_bits(comm: Communicator, shared_path: Path, case: tuple[str, Any]) -> None:
    solver, batch = case
    run = Case(solver, {}, batch, iterations=5, objective=augmented)
    whole = run_in_pieces(comm, run, shared_path / "whole")
    assert_same_bits(run_in_pieces(comm, run, shared_path / "pieces", [3]), whole)


def test_a_network_whose_pixels_are_cut_over_the_ranks_refuses(comm: Communicator) -> None:
    with pytest.raises(UsageError, match=r'data\.augment = "crop_flip" needs whole images'):
        PreparedJob(parse_job(JOB, ["parallel.layout=variables", "solver.name=newton", "model.init=he"]), comm)
