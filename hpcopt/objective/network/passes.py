"""Sweeps through a network on a grid of ranks: forward, backward, tangents, and the factors of its Jacobian.

Rank (i, j) holds one block of every layer. The partial sums of a layer over its groups of inputs are reduced within a
column of the grid for odd layers and within a row for even ones; sums over groups of outputs, backwards, the other way.
What is reduced then lies where the next layer needs it: there is one reduction a layer and no broadcast, and two
communicators serve all layers. A communicator of one rank sends nothing.

Messages, in numbers, of a rank for b instances, C outputs, blocks of u_m inputs and v_m outputs in layer m = 1 ... L:
forward b v_m for every layer, backward b u_m for m = 2 ... L, tangents as forward, factors u_L C once and b C u_m for
m = 2 ... L - 1. Letters are those of Wang et al. 2018 (arXiv:1802.00130): z^m are the values of layer m, z^0 the
inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.kernels.interface import Kernels
from hpcopt.layout.network import NetworkLayout
from hpcopt.objective.protocol import Vector


class LayerView(NamedTuple):
    """A rank's block of one layer, as views of a flat vector.

    Attributes:
        number: m, from 1.
        weights: W (u, v).
        biases: b (v,), None where another rank holds them.
    """

    number: int
    weights: torch.Tensor
    biases: torch.Tensor | None


class GridNetwork:
    """The network's sweeps on one rank. *Collective*: makes the communicators of row and column.

    Args:
        layout: sizes and grid.
        activation: of the hidden layers; the output layer is linear.
        comm: all ranks of the grid, row by row.
        kernels: the local products.
    """

    def __init__(
        self, layout: NetworkLayout, activation: str, comm: Communicator, kernels: Kernels[torch.Tensor]
    ) -> None:
        self.layout, self.activation, self.kernels = layout, activation, kernels
        row, column = layout.grid.coordinates(comm.rank)
        self._row, self._column = comm.split(row, column), comm.split(column, row)
        self._blocks = layout.blocks(comm.rank)
        self.outputs = layout.outputs(comm.rank)
        self.width = layout.sizes[-1]
        self.is_first = self._blocks[-1].biased
        """Of the ranks with the same outputs, this one counts for all of them."""

    def free(self) -> None:
        """Give back the communicators of row and column. *Collective*."""
        self._row.free()
        self._column.free()

    def across(self, layer: int) -> Communicator:
        """The ranks that hold the different groups of neurons of layer m = 0 ... L, this one among them."""
        return self._row if layer % 2 else self._column

    def views(self, vector: Vector) -> list[LayerView]:
        """The blocks of all layers in a rank's flat vector, without a copy."""
        found = []
        for held in self._blocks:
            weights = vector[held.weights].view(held.inputs.count, held.outputs.count)
            found.append(LayerView(held.number, weights, vector[held.biases] if held.biased else None))
        return found

    def forward(
        self, layers: list[LayerView], inputs: torch.Tensor, kept: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """z^L, this rank's columns (b, v_L), for its columns of the inputs (b, u_1). *Collective*.

        With ``kept``, what every layer was given, z^0 ... z^{L-1}, is appended to it.
        """
        values = inputs
        for layer in layers:
            if kept is not None:
                kept.append(values)
            sums = self.kernels.affine(values, layer.weights, layer.biases)
            self._sum(sums, layer.number - 1, "forward")
            values = self.kernels.activate(self.activation, sums) if layer.number < len(layers) else sums
        return values

    def backward(
        self, layers: list[LayerView], kept: list[torch.Tensor], errors: torch.Tensor, gradient: list[LayerView]
    ) -> None:
        """Add J^T e to ``gradient`` for errors e (b, v_L) of this rank's outputs. *Collective*."""
        for layer, into in zip(reversed(layers), reversed(gradient), strict=True):
            inputs = kept[layer.number - 1]
            self.kernels.add_gradient(inputs, errors, into.weights, into.biases)
            if layer.number > 1:
                errors = self._pulled(layer, inputs, errors, "backward")

    def tangents(self, layers: list[LayerView], kept: list[torch.Tensor], moves: list[LayerView]) -> torch.Tensor:
        """J v, this rank's columns (b, v_L), by a second forward sweep. *Collective*."""
        tangent: torch.Tensor | None = None
        for layer, move in zip(layers, moves, strict=True):
            inputs = kept[layer.number - 1]
            sums = self.kernels.affine(inputs, move.weights, move.biases)
            if tangent is not None:
                sums += self.kernels.affine(tangent, layer.weights, None)
            tangent = self._sum(sums, layer.number - 1, "forward")
            if layer.number < len(layers):
                self.kernels.scale_by_slope(self.activation, kept[layer.number], tangent)
        assert tangent is not None
        return tangent

    def output_weights(self, layers: list[LayerView]) -> torch.Tensor:
        """W^L for this rank's inputs and all outputs, (u_L, C): where the factors begin. *Collective*."""
        return self.gather_outputs(layers[-1].weights, "factors")

    def factors(
        self, layers: list[LayerView], kept: list[torch.Tensor], output_weights: torch.Tensor
    ) -> list[torch.Tensor]:
        """M^1 ... M^{L-1}, each (b, C, v_m): M[i, c, j] = d z^L_c / d s_j of instance i. *Collective*.

        From the last to the first, each in the memory in which its sum over the groups arrived. M^L is the identity,
        since the output layer is linear, and is not stored.
        """
        found: list[torch.Tensor] = []
        for layer in reversed(layers[1:]):
            values = kept[layer.number - 1]
            if layer.number == len(layers):
                found.append(self.kernels.last_factors(output_weights, self.activation, values))
            else:
                found.append(self._pulled(layer, values, found[-1], "factors"))
        return found[::-1]

    def gather_outputs(self, own: torch.Tensor, label: str = "outputs") -> torch.Tensor:
        """The columns of all outputs (b, C) from those of every group (b, v_L). *Collective*."""
        whole = own.new_zeros(own.shape[0], self.width)
        whole[:, self.outputs.slice] = own
        return self._sum(whole, self.layout.layers, label)

    def _pulled(self, layer: LayerView, inputs: torch.Tensor, errors: torch.Tensor, label: str) -> torch.Tensor:
        """Errors or factors of the layer before, from those of ``layer``, whose inputs are given. *Collective*."""
        back = self._sum(self.kernels.pull_back(errors, layer.weights), layer.number, label)
        return self.kernels.scale_by_slope(self.activation, inputs, back)

    def _sum(self, array: torch.Tensor, layer: int, label: str) -> torch.Tensor:
        """Sum over the groups of neurons of layer m, in place. *Collective*."""
        groups = self.across(layer)
        if groups.size > 1:
            groups.allreduce(array, label=label)
        return array
