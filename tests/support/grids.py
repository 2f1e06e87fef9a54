"""The small problem on a grid of ranks, with a network deep enough for four blocks of variables."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.layout.block import block
from hpcopt.objective.protocol import Batch
from hpcopt.objective.variable_blocks import VariableBlockObjective
from hpcopt.train.minimize import plan_batches
from hpcopt.train.sampler import Sampler
from tests.support.problems import CLASSES, FEATURES, SAMPLES, samples


def deep_network(dropout: float = 0.0, batch_norm: bool = False) -> torch.nn.Sequential:
    """A network of 5-7-6-4-3 units in float64, of four modules with variables (five with batch normalisation)."""
    torch.manual_seed(0)
    widths = [FEATURES, 7, 6, 4]
    layers: list[torch.nn.Module] = []
    for before, after in pairwise(widths):
        layers += [torch.nn.Linear(before, after), torch.nn.Tanh()]
    if batch_norm:
        layers.append(torch.nn.BatchNorm1d(4))
    if dropout:
        layers.append(torch.nn.Dropout(dropout))
    return torch.nn.Sequential(*layers, torch.nn.Linear(4, CLASSES)).double()


def divides(comm: Communicator, shards: int) -> None:
    """Skip the test where the ranks do not form so many rows."""
    if comm.size % shards:
        pytest.skip(f"{comm.size} ranks do not form {shards} rows")


def on_grid(
    comm: Communicator,
    shards: int,
    loss: str = "cross_entropy",
    model: torch.nn.Module | None = None,
    count: int = SAMPLES,
    dtype: torch.dtype = torch.float64,
    **options: object,
) -> VariableBlockObjective:
    """The problem with its samples in contiguous shards over the rows of the grid."""
    inputs, targets = samples(loss, count)
    mine = block(count, shards, comm.rank * shards // comm.size).slice
    network = (model or deep_network()).to(dtype)
    return VariableBlockObjective(network, loss, inputs[mine], targets[mine], comm, shards=shards, **options)  # type: ignore[arg-type]


def mini_batches(objective: VariableBlockObjective, size: int, number: int) -> Iterator[Batch]:
    """The first batches of a run. *Collective*."""
    batches = Sampler(plan_batches(objective, size, 0.25, 3), torch.device("cpu")).begin()
    return (batches.next() for _ in range(number))
