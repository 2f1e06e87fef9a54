"""Small problems in float64 that every test of the objective and of the loop can share."""

from __future__ import annotations

import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.layout.block import block
from hpcopt.objective.augmentation import CropAndFlip
from hpcopt.objective.data_parallel import DataParallelObjective

SAMPLES, FEATURES, CLASSES = 37, 5, 3


def loss_for(solver: str) -> str:
    """The loss of the problem for a method: there is one that knows no other than the squared."""
    return "squared" if solver == "slimtrain" else "cross_entropy"


def small_network(seed: int = 0, dropout: float = 0.0, batch_norm: bool = False) -> torch.nn.Sequential:
    """A network of 5-7-3 units in float64."""
    torch.manual_seed(seed)
    middle: list[torch.nn.Module] = [torch.nn.Tanh()]
    if batch_norm:
        middle.append(torch.nn.BatchNorm1d(7))
    if dropout:
        middle.append(torch.nn.Dropout(dropout))
    return torch.nn.Sequential(torch.nn.Linear(FEATURES, 7), *middle, torch.nn.Linear(7, CLASSES)).double()


def samples(loss: str = "cross_entropy", count: int = SAMPLES) -> tuple[torch.Tensor, torch.Tensor]:
    """All inputs and targets of the problem."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64)
    if loss == "squared":
        return inputs, torch.randn(count, CLASSES, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(CLASSES, (count,), generator=generator)


def sharded(
    comm: Communicator,
    loss: str = "cross_entropy",
    model: torch.nn.Module | None = None,
    count: int = SAMPLES,
    **options: object,
) -> DataParallelObjective:
    """The problem with its samples in contiguous blocks over the ranks of ``comm``."""
    inputs, targets = samples(loss, count)
    start, length = block(count, comm.size, comm.rank)[:2]
    return DataParallelObjective(
        model or small_network(),
        loss,
        inputs[start : start + length],
        targets[start : start + length],
        comm,
        **options,  # type: ignore[arg-type]
    )


def augmented(comm: Communicator, **options: object) -> DataParallelObjective:
    """The problem of ``sharded`` with every sample taken for an image of one row, shifted and mirrored."""
    start, length = block(SAMPLES, comm.size, comm.rank)[:2]
    crop = CropAndFlip(9, start, length, torch.device("cpu"))

    def augment(inputs: torch.Tensor, epoch: int, chosen: slice | torch.Tensor) -> torch.Tensor:
        return crop(inputs.unsqueeze(1), epoch, chosen).squeeze(1)

    return sharded(comm, augment=augment, **options)  # type: ignore[arg-type]


def plain_crops(epoch: int) -> torch.Tensor:
    """All inputs of ``augmented`` in an epoch."""
    crop = CropAndFlip(9, 0, SAMPLES, torch.device("cpu"))
    return crop(samples()[0].unsqueeze(1), epoch, slice(None)).squeeze(1)
