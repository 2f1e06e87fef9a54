"""Shifted and mirrored images: as a plain loop makes them, the same in all evaluations of a batch, new every epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.objective.augmentation import MARGIN, CropAndFlip
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Batch
from hpcopt.random import uniform_keys
from hpcopt.solvers.registry import make_solver
from hpcopt.train.evaluation import Evaluator
from tests.support.problems import augmented, plain_crops, samples, sharded

CPU = torch.device("cpu")
SOME = torch.tensor([0, 3, 4, 11, 30])


def by_a_loop(image: np.ndarray, seed: int, epoch: int, position: int) -> np.ndarray:
    """One image (..., H, W), pixel by pixel."""
    code = int(uniform_keys(seed, "augment", epoch, np.array([position]))[0]) % (2 * 9 * 9)
    left, top, mirrored = code // 18, code % 18 // 2, code % 2
    height, width = image.shape[-2:]
    out = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            y, x = row + top - MARGIN, (width - 1 - column if mirrored else column) + left - MARGIN
            if 0 <= y < height and 0 <= x < width:
                out[..., row, column] = image[..., y, x]
    return out


@pytest.mark.parametrize("shape", [(3, 6, 5), (1, 2, 9), (7, 4)])
@pytest.mark.parametrize("chosen", [slice(2, 9), torch.tensor([1, 4, 5, 19]), slice(0, 0)], ids=str)
def test_images_are_those_of_a_plain_loop(shape: tuple[int, ...], chosen: slice | torch.Tensor) -> None:
    images = np.random.default_rng(0).normal(size=(20, *shape))
    augment = CropAndFlip(7, 100, 20, CPU)
    for epoch in (0, 3, 0):
        want = np.stack([by_a_loop(image, 7, epoch, 100 + k) for k, image in enumerate(images)])
        found = augment(torch.from_numpy(images)[chosen], epoch, chosen)
        np.testing.assert_array_equal(found.numpy(), want[chosen])


def test_every_place_and_both_sides_come_equally_often() -> None:
    top, left, mirrored = CropAndFlip(0, 0, 40_000, CPU).draws(1)
    for drawn in (top, left):
        counts = torch.bincount(drawn)
        assert len(counts) == 2 * MARGIN + 1
        assert counts.min() > 0.93 * 40_000 / 9
    assert mirrored.double().mean() == pytest.approx(0.5, abs=0.01)
    columns = torch.stack([top, left, mirrored]).double()
    assert (torch.corrcoef(columns) - torch.eye(3)).abs().max() < 0.02


@pytest.mark.parametrize("micro_batch", [None, 4])
@pytest.mark.parametrize("batch", [Batch(None, 37, 37, (2, 0)), Batch(SOME, 5, 5, (2, 3))], ids=["full", "mini"])
def test_all_evaluations_of_a_batch_see_the_same_images(
    comm: Communicator, batch: Batch, micro_batch: int | None
) -> None:
    """Values, gradients, products, curvatures and subsets are those of the images, made before."""
    ours = augmented(comm, micro_batch=micro_batch)
    theirs = DataParallelObjective(ours.shard.module, "cross_entropy", plain_crops(2), samples()[1], comm)
    w = ours.initial_vector() + 0.1
    for _ in range(2):
        assert ours.value(w, batch) == pytest.approx(theirs.value(w, batch), rel=1e-13)
    subset = ours.subset(batch, 4, 1)
    for part in (batch, subset):
        found, want = (objective.value_and_gradient(w, part) for objective in (ours, theirs))
        assert found[0] == pytest.approx(want[0], rel=1e-13)
        torch.testing.assert_close(found[1], want[1])
        models = [objective.linearize(w, part) for objective in (ours, theirs)]
        torch.testing.assert_close(*(model.curvatures(w[None]) for model in models))
        torch.testing.assert_close(*(model.gauss_newton(w) for model in models))


def test_batches_of_an_epoch_agree_and_those_of_the_next_differ(comm: Communicator) -> None:
    objective = augmented(comm)
    w = objective.initial_vector()
    first, second, later = (objective.value(w, Batch(SOME, 5, 5, key)) for key in ((0, 0), (0, 1), (1, 0)))
    assert first == second
    assert abs(first - later) > 1e-3


def test_whole_sets_are_evaluated_as_they_are(comm: Communicator) -> None:
    ours, theirs = augmented(comm), sharded(comm)
    w = ours.initial_vector()
    assert Evaluator(ours, samples())(w) == Evaluator(theirs, samples())(w)


def test_a_last_layer_is_solved_for_on_all_samples_as_they_are(comm: Communicator) -> None:
    ours, theirs = augmented(comm, loss="squared"), sharded(comm, "squared")
    w = ours.initial_vector()
    (found,), (want,) = (objective.separable.everything(w).rows() for objective in (ours, theirs))
    torch.testing.assert_close(found.design, want.design)
    (seen,) = ours.separable.features(w, ours.full_batch, torch.zeros(3, 8, dtype=torch.float64)).rows()
    assert not torch.allclose(seen.design, want.design)


@pytest.mark.parametrize(
    ("solver", "options"),
    [("trust_region", {}), ("apts", {}), ("lbfgs", {}), ("nlcg", {}), ("newton", {"subset_least": 1})],
    ids=lambda x: str(x),
)
def test_on_full_batches_nothing_is_known_from_the_epoch_before(
    comm: Communicator, solver: str, options: dict[str, Any]
) -> None:
    objective = augmented(comm)
    assert not objective.deterministic
    assert sharded(comm).deterministic
    method = make_solver(solver, options, 10.0)
    state = method.init(objective)
    for epoch in range(3):
        batch = Batch(None, 37, 37, (epoch, 0), float(epoch))
        before = objective.value(state["parameters"].clone(), batch)
        state, report = method.step(objective, state, batch)
        assert report.loss == pytest.approx(before, rel=1e-12)
