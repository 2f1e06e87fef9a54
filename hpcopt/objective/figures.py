"""Figures of a whole set: those of a module on this rank's samples, in chunks that keep activations small."""

from __future__ import annotations

import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.objective.losses import Loss, predictions_correct
from hpcopt.objective.problem import Samples, Sums

ON_PROCESSOR, ON_DEVICE = 256, 4096
"""Samples in one forward pass: past the point where matrix products get faster. On a processor the activations of a
convolution must not leave its caches: with 4096 samples the forward pass of a small network takes twice as long."""


def chunk_of(tensor: torch.Tensor, step: int | None = None) -> int:
    """Samples in one forward pass where nothing is differentiated.

    Args:
        tensor: some of them.
        step: most samples in one forward pass; None for no other limit.
    """
    chunk = ON_DEVICE if tensor.is_cuda else ON_PROCESSOR
    return min(chunk, step or chunk)


def sums(module: torch.nn.Module, loss: Loss, samples: Samples, step: int | None = None) -> Sums:
    """Losses, right predictions (for labels) and squared errors (for values), summed. Local.

    Args:
        module: in evaluation mode.
        loss: a sum of one term a sample.
        samples: inputs and targets.
        step: most samples in one forward pass; None for no other limit than that of ``chunk_of``.
    """
    total, chunk = [0.0, 0.0, 0.0], chunk_of(samples[0], step)
    with torch.no_grad():
        for inputs, targets in zip(*(part.split(chunk) for part in samples), strict=True):
            if len(inputs):
                total = [a + b for a, b in zip(total, figures(module(inputs), targets, loss), strict=True)]
    return Sums(*total)


def figures(outputs: torch.Tensor, targets: torch.Tensor, loss: Loss) -> Sums:
    """The figures of some samples from the outputs (b, C) of the model."""
    value = float(loss.sum(outputs, targets))
    if not targets.is_floating_point():
        return Sums(value, predictions_correct(outputs, targets), 0.0)
    return Sums(value, 0.0, float((outputs - targets.reshape(outputs.shape)).square().sum(dtype=torch.float64)))


def squares_from_mean(targets: torch.Tensor, comm: Communicator) -> tuple[float, float]:
    """Number of all ranks' samples, and the sum of squared distances of this rank's from the mean of all. *Collective*.

    Args:
        targets: of this rank's samples, (b,) or (b, C).
        comm: the ranks.
    """
    values = targets.to(torch.float64)
    count, *total = comm.reduce_scalars([len(values), *values.sum(0).flatten().tolist()], label="evaluation")
    mean = torch.tensor(total, dtype=torch.float64) / max(count, 1)
    return count, float((values - mean.to(values).reshape(values.shape[1:])).square().sum())
