"""Kronecker factors of whole models as matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hpcopt.comm.communicator import Communicator
from hpcopt.objective.curvature.kronecker import KroneckerCurvature
from hpcopt.objective.curvature.triangles import triangle_size, unpack
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Batch, Vector

Factors = list[tuple[torch.Tensor, torch.Tensor]]


def matrices(curvature: KroneckerCurvature, packed: Vector) -> tuple[Factors, Vector]:
    """A and G of every layer, and the diagonal of the other variables."""
    orders = [order for layer in curvature.layers for order in (layer.inputs, layer.outputs)]
    sizes = [triangle_size(order) for order in orders]
    *triangles, diagonal = packed.split([*sizes, curvature.size - sum(sizes)])
    squares = [unpack(part, order) for part, order in zip(triangles, orders, strict=True)]
    return list(zip(squares[::2], squares[1::2], strict=True)), diagonal


def factors(objective: DataParallelObjective, batch: Batch | None = None, **options: Any) -> tuple[Factors, Vector]:
    """The first matrices of a run, or those that ``options`` of a draw ask for."""
    options = {"fisher": "true", "number": 0} | options
    pending = objective.kronecker.begin(objective.initial_vector(), batch or objective.full_batch, **options)
    return matrices(objective.kronecker, pending.wait())


def objective_of(
    comm: Communicator, model: nn.Module, inputs: torch.Tensor, loss: str = "squared", **options: Any
) -> DataParallelObjective:
    """Of a model in float64, with targets of 0."""
    with torch.no_grad():
        outputs = model.double()(inputs)
    targets = torch.zeros_like(outputs) if loss == "squared" else torch.zeros(len(inputs), dtype=torch.int64)
    return DataParallelObjective(model, loss, inputs, targets, comm, **options)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normally distributed, in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
