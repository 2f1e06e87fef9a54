"""Small networks on a grid of ranks, and the same network whole, differentiated by complex steps.

Shapes: N instances, C outputs, n numbers in the whole vector, which is that of one rank that holds everything.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from hpcopt.kernels.reference import NumpyKernels
from hpcopt.layout.block import block
from hpcopt.layout.disjoint import DisjointLayout
from hpcopt.layout.grid import ProcessGrid
from hpcopt.layout.network import GridLayout, NetworkLayout
from hpcopt.objective.network.objective import NetworkObjective
from hpcopt.objective.network.replicas import NetworkReplicas
from hpcopt.objective.protocol import Batch, Vector

FOUR, THREE, ONE = (5, 7, 6, 5, 3), (5, 6, 7, 4), (6, 4)
"""Sizes: of four layers, whose outputs are cut over the rows, of three, over the columns, and of one."""

SAMPLES, STEP = 11, 1e-30
ROWS, DECAY = [0, 3, 4, 8, 10], 0.01
BATCH = Batch(torch.tensor(ROWS), len(ROWS), len(ROWS))
"""Some of the instances: those of ``dense``."""

CLOSE: dict[str, float] = {"rtol": 1e-12, "atol": 1e-13}


def whole_layout(sizes: tuple[int, ...]) -> GridLayout:
    """Everything on one rank."""
    return GridLayout(sizes, ProcessGrid(1, 1))


def data(sizes: tuple[int, ...], loss: str, samples: int = SAMPLES) -> tuple[torch.Tensor, torch.Tensor]:
    """All features (N, n_0), and labels (N,) or values (N, C)."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, sizes[0], generator=generator, dtype=torch.float64)
    if loss == "squared":
        return inputs, torch.randn(samples, sizes[-1], generator=generator, dtype=torch.float64)
    return inputs, torch.randint(sizes[-1], (samples,), generator=generator)


def on_grid(
    comm: Any,
    grid: tuple[int, int],
    sizes: tuple[int, ...] = FOUR,
    loss: str = "cross_entropy",
    activation: str = "tanh",
    dtype: torch.dtype = torch.float64,
    rows: slice = slice(None),
    **options: Any,
) -> NetworkObjective:
    """The problem, or some instances of it, with features and targets cut as the grid wants them. *Collective*."""
    own = columns(GridLayout(sizes, ProcessGrid(*grid)), comm.rank, loss, dtype, rows)
    return NetworkObjective(sizes, activation, loss, *own, comm, grid, **options)


def on_own_ranks(
    comm: Any,
    split: tuple[int, ...],
    sizes: tuple[int, ...] = FOUR,
    loss: str = "cross_entropy",
    activation: str = "tanh",
    dtype: torch.dtype = torch.float64,
    rows: slice = slice(None),
    **options: Any,
) -> NetworkObjective:
    """The problem, or some instances of it, with every layer on ranks of its own. *Collective*."""
    own = columns(DisjointLayout(sizes, split), comm.rank, loss, dtype, rows)
    return NetworkObjective(sizes, activation, loss, *own, comm, mapping="paper", split=split, **options)


def columns(
    layout: NetworkLayout, rank: int, loss: str, dtype: torch.dtype, rows: slice = slice(None)
) -> tuple[torch.Tensor, torch.Tensor]:
    """The features and the targets that a rank holds of some instances."""
    inputs, targets = (each[rows] for each in data(layout.sizes, loss))
    if targets.is_floating_point():
        targets = targets[:, layout.outputs(rank).slice].to(dtype)
    return inputs[:, layout.features(rank).slice].to(dtype), targets


def replicated(comm: Any, replicas: int, cut: tuple[int, ...], *given: Any, **options: Any) -> NetworkReplicas:
    """Replicas of the problem, each with its block of the instances, on grids or split by layers. *Collective*."""
    made_by: Any = on_grid if len(cut) == 2 else on_own_ranks

    def make(ranks: Any) -> NetworkObjective:
        rows = block(SAMPLES, replicas, comm.rank // ranks.size).slice
        found: NetworkObjective = made_by(ranks, cut, *given, rows=rows, **options)
        return found

    return NetworkReplicas(comm, replicas, make)


def positions(layout: NetworkLayout, rank: int) -> torch.Tensor:
    """Where the numbers of a rank lie in the whole vector (n,)."""
    whole = {part.name: part for part in whole_layout(layout.sizes).parts(0)}
    found = []
    for part in layout.parts(rank):
        place = whole[part.name].place
        numbers = np.arange(place.start, place.stop).reshape(part.shape)
        cut = numbers[tuple(slice(s, s + c) for s, c in zip(part.start, part.count, strict=True))]
        found.append(cut.reshape(-1))
    return torch.from_numpy(np.concatenate(found))


def own(objective: NetworkObjective, whole: torch.Tensor) -> Vector:
    """This rank's numbers of a whole vector (n,)."""
    return whole[positions(objective.partition, objective.comm.rank)]


def gathered(objective: NetworkObjective, vector: Vector) -> torch.Tensor:
    """The whole vector (n,) from every rank's numbers. *Collective*."""
    return assemble(objective.partition, objective.comm.allgather_objects(vector))


def assemble(layout: NetworkLayout, parts: list[torch.Tensor]) -> torch.Tensor:
    """The whole vector (n,) from those of all ranks."""
    whole = torch.full((layout.parameters,), torch.nan, dtype=parts[0].dtype)
    for rank, part in enumerate(parts):
        whole[positions(layout, rank)] = part
    return whole


def torch_model(sizes: tuple[int, ...], w: torch.Tensor, activation: str = "tanh") -> torch.nn.Sequential:
    """The whole network as a torch module with the weights w (n,), in their precision."""
    activations = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU, "sigmoid": torch.nn.Sigmoid}
    modules: list[torch.nn.Module] = []
    for held in whole_layout(sizes).blocks(0):
        linear = torch.nn.Linear(held.inputs.count, held.outputs.count, dtype=w.dtype)
        with torch.no_grad():
            linear.weight.copy_(w[held.weights].view(held.inputs.count, held.outputs.count).T)
            linear.bias.copy_(w[held.biases])
        modules += [linear, activations[activation]()]
    return torch.nn.Sequential(*modules[:-1])


def start(sizes: tuple[int, ...], seed: int = 5) -> torch.Tensor:
    """A whole vector (n,) with biases that are not 0."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(whole_layout(sizes).parameters, generator=generator, dtype=torch.float64) / 2


def reference_outputs(sizes: tuple[int, ...], activation: str, w: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """The outputs (N, C) of the whole network, also for complex w."""
    kernels, values = NumpyKernels(), inputs
    blocks = whole_layout(sizes).blocks(0)
    for held in blocks:
        weights = w[held.weights].reshape(held.inputs.count, held.outputs.count)
        values = kernels.affine(values, weights, w[held.biases])
        if held.number < len(blocks):
            values = kernels.activate(activation, values)
    return values


def reference_jacobian(sizes: tuple[int, ...], activation: str, w: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """J (N * C, n) by complex steps: no rounding error but that of the evaluation."""
    point, given, columns = w.numpy().astype(complex), inputs.numpy().astype(complex), []
    for k in range(len(point)):
        moved = point.copy()
        moved[k] += 1j * STEP
        columns.append(reference_outputs(sizes, activation, moved, given).imag.reshape(-1) / STEP)
    return torch.from_numpy(np.stack(columns, axis=1))


@cache
def dense(sizes: tuple[int, ...], loss: str, activation: str = "tanh") -> tuple[torch.Tensor, torch.Tensor]:
    """J (b C, n) and G (n, n) with ``DECAY`` at ``start``, on the b instances of ``BATCH``."""
    w, inputs = start(sizes), data(sizes, loss)[0][ROWS]
    jacobian = reference_jacobian(sizes, activation, w, inputs)
    outputs = torch.from_numpy(reference_outputs(sizes, activation, w.numpy(), inputs.numpy()))
    product = jacobian.T @ reference_curvature(loss, outputs) @ jacobian / len(ROWS)
    return jacobian, product + DECAY * torch.eye(len(w), dtype=w.dtype)


def reference_curvature(loss: str, outputs: torch.Tensor) -> torch.Tensor:
    """B (N * C, N * C), one block an instance."""
    if loss == "squared":
        return torch.eye(outputs.numel(), dtype=outputs.dtype)
    return torch.block_diag(*(torch.diag(p) - torch.outer(p, p) for p in outputs.softmax(1)))


def reference_value(
    sizes: tuple[int, ...], activation: str, loss: str, w: torch.Tensor, weight_decay: float = 0.0
) -> torch.Tensor:
    """f(w) of the whole network by torch, which autograd can follow."""
    inputs, targets = data(sizes, loss)
    values, blocks = inputs, whole_layout(sizes).blocks(0)
    for held in blocks:
        weights = w[held.weights].view(held.inputs.count, held.outputs.count)
        values = values @ weights + w[held.biases]
        if held.number < len(blocks):
            values = getattr(torch, activation)(values)
    if loss == "squared":
        mean = (values - targets).square().sum() / 2 / len(inputs)
    else:
        mean = torch.nn.functional.cross_entropy(values, targets)
    return mean + weight_decay / 2 * w @ w
