"""First weights of a cut network, drawn by counters: the model does not depend on how it is cut.

Every number is a function of the seed, the layer and its place in the whole matrix, so that a rank draws its own block
and nothing else. Shapes: W^m is (n_{m-1}, n_m), a rank's block of it (u, v).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from hpcopt.layout.network import LayerBlock, NetworkLayout
from hpcopt.models.layers import SPARSE_INPUTS
from hpcopt.random import uniforms

_NUMBERS = 1 << 17
"""Drawn at a time: what is made on the way, in float64, stays small beside the blocks."""


def initial_blocks(layout: NetworkLayout, rank: int, rule: str, seed: int, like: torch.Tensor) -> torch.Tensor:
    """A rank's flat vector: weights by ``rule``, one of ``INITS``, and biases of 0; precision and place as ``like``.

    Normal numbers come from logarithms and cosines, which may differ in the last bit between machines.
    """
    vector = torch.zeros(layout.size(rank), dtype=like.dtype, device=like.device)
    for held in layout.blocks(rank):
        INITS[rule](layout, held, seed, vector[held.weights].view(held.inputs.count, held.outputs.count))
    return vector


def _he(layout: NetworkLayout, held: LayerBlock, seed: int, weights: torch.Tensor) -> None:
    """Normal, variance 2/n_{m-1}, and 1/n_{m-1} in the last layer (He et al. 2015, arXiv:1502.01852)."""
    deviation = math.sqrt((1.0 if held.number == layout.layers else 2.0) / layout.sizes[held.number - 1])
    _fill(layout, held, weights, lambda places: _normals(seed, "network he", held.number, places) * deviation)


def _xavier(layout: NetworkLayout, held: LayerBlock, seed: int, weights: torch.Tensor) -> None:
    """Uniform, variance 2/(n_{m-1} + n_m) (Glorot and Bengio 2010)."""
    bound = math.sqrt(6 / (layout.sizes[held.number - 1] + layout.sizes[held.number]))
    stream = "network xavier"
    _fill(layout, held, weights, lambda places: bound * (2 * uniforms(seed, stream, held.number, places) - 1))


def _sparse(layout: NetworkLayout, held: LayerBlock, seed: int, weights: torch.Tensor) -> None:
    """Standard normal for ``SPARSE_INPUTS`` incoming weights of every unit, chosen at random, and 0 for the others.

    The inputs of a unit are drawn by Floyd's method (Bentley and Floyd 1987, doi:10.1145/30401.315746), for all units
    of the block at once: as many numbers as there are weights that are not 0, whatever the number of inputs.
    """
    size = layout.sizes[held.number - 1]
    count = min(SPARSE_INPUTS, size)
    units = np.arange(held.outputs.start, held.outputs.stop)
    places = units[:, None] * count + np.arange(count)
    draws = uniforms(seed, "network sparse inputs", held.number, places)
    chosen = np.empty_like(places)
    for k, last in enumerate(range(size - count, size)):
        drawn = np.floor(draws[:, k] * (last + 1)).astype(np.int64)
        taken = (chosen[:, :k] == drawn[:, None]).any(axis=1)
        chosen[:, k] = np.where(taken, last, drawn)
    values = _normals(seed, "network sparse weights", held.number, places)
    unit, draw = np.nonzero((chosen >= held.inputs.start) & (chosen < held.inputs.stop))
    rows, columns = torch.from_numpy(chosen[unit, draw] - held.inputs.start), torch.from_numpy(unit)
    weights[rows.to(weights.device), columns.to(weights.device)] = torch.from_numpy(values[unit, draw]).to(weights)


INITS: dict[str, Callable[[NetworkLayout, LayerBlock, int, torch.Tensor], None]] = {
    "he": _he,
    "xavier": _xavier,
    "sparse": _sparse,
}
"""Name -> what writes the weights (u, v) of a rank's block over zeros. Biases are 0."""


def _fill(
    layout: NetworkLayout, held: LayerBlock, weights: torch.Tensor, draw: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Write a block (u, v) of a matrix in which every weight is drawn for its place in the whole, a few rows a time."""
    columns = np.arange(held.outputs.start, held.outputs.stop)
    step = max(1, _NUMBERS // held.outputs.count)
    for first in range(0, held.inputs.count, step):
        part = weights[first : first + step]
        rows = np.arange(len(part)) + held.inputs.start + first
        part.copy_(torch.from_numpy(draw(rows[:, None] * layout.sizes[held.number] + columns)))


def _normals(seed: int, stream: str, layer: int, places: np.ndarray) -> np.ndarray:
    """A standard normal number for every place, float64 (Box and Muller 1958, doi:10.1214/aoms/1177706645)."""
    radius = uniforms(seed, stream, layer, 2 * places)
    angle = uniforms(seed, stream, layer, 2 * places + 1)
    # 1 - u lies in (0, 1], so that the logarithm is finite.
    return np.asarray(np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * math.pi * angle))
