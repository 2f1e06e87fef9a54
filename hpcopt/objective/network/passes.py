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

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.kernels.interface import Kernels
from hpcopt.layout.network import GridLayout, NetworkLayout
from hpcopt.objective.protocol import Vector

Kept = dict[int, torch.Tensor]
"""One array for each of a rank's layers, by its number m: what it was given, z^{m-1} (b, u_m), or M^m (b, C, v_m)."""


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


class Network(ABC):
    """The sweeps through a network on one rank, whichever blocks it holds.

    Args:
        layout: who holds which block of every layer.
        activation: of the hidden layers; the output layer is linear.
        comm: all ranks of the layout.
        kernels: the local products.

    Attributes:
        layout, activation, kernels: as given.
        outputs: this rank's columns of the network's outputs, v_L of them, 0 where it has none.
        width: outputs of the network, C.
        output_groups: the ranks that hold the different groups of outputs, this one among them.
    """

    output_groups: Communicator

    def __init__(
        self, layout: NetworkLayout, activation: str, comm: Communicator, kernels: Kernels[torch.Tensor]
    ) -> None:
        self.layout, self.activation, self.kernels = layout, activation, kernels
        self._blocks = layout.blocks(comm.rank)
        self.outputs = layout.outputs(comm.rank)
        self.width = layout.sizes[-1]
        self.is_first = self._blocks[-1].biased
        """Of the ranks with the same outputs, this one counts for all of them."""

    @abstractmethod
    def free(self) -> None:
        """Give back the communicators that the sweeps use. *Collective*."""

    def views(self, vector: Vector) -> list[LayerView]:
        """The blocks of all layers in a rank's flat vector, without a copy."""
        found = []
        for held in self._blocks:
            weights = vector[held.weights].view(held.inputs.count, held.outputs.count)
            found.append(LayerView(held.number, weights, vector[held.biases] if held.biased else None))
        return found

    @abstractmethod
    def forward(self, layers: list[LayerView], inputs: torch.Tensor, kept: Kept | None = None) -> torch.Tensor:
        """z^L, this rank's columns (b, v_L), for its columns of the inputs (b, u_1). *Collective*.

        With ``kept``, what each of this rank's layers was given, z^{m-1}, is put into it.
        """

    @abstractmethod
    def backward(self, layers: list[LayerView], kept: Kept, errors: torch.Tensor, gradient: list[LayerView]) -> None:
        """Add J^T e to ``gradient`` for errors e (b, v_L) of this rank's outputs. *Collective*."""

    @abstractmethod
    def tangents(self, layers: list[LayerView], kept: Kept, moves: list[LayerView]) -> torch.Tensor:
        """J v, this rank's columns (b, v_L), by a second forward sweep. *Collective*."""

    @abstractmethod
    def output_weights(self, layers: list[LayerView]) -> torch.Tensor | None:
        """What ``factors`` needs of W^L on this rank. *Collective*."""

    @abstractmethod
    def factors(self, layers: list[LayerView], kept: Kept, output_weights: torch.Tensor | None) -> Kept:
        """M^m (b, C, v_m) of this rank's hidden layers: M[i, c, j] = d z^L_c / d s_j of instance i. *Collective*.

        M^L is the identity, since the output layer is linear, and is not stored.
        """

    @abstractmethod
    def gather_outputs(self, own: torch.Tensor, label: str = "outputs") -> torch.Tensor:
        """The columns of all outputs (b, C) on all ranks, from those of every group (b, v_L). *Collective*."""


class GridNetwork(Network):
    """The sweeps on a grid of ranks. *Collective*: makes the communicators of row and column."""

    def __init__(self, layout: GridLayout, activation: str, comm: Communicator, kernels: Kernels[torch.Tensor]) -> None:
        super().__init__(layout, activation, comm, kernels)
        row, column = layout.grid.coordinates(comm.rank)
        self._row, self._column = comm.split(row, column), comm.split(column, row)
        self.output_groups = self.across(layout.layers)

    def free(self) -> None:
        """Give back the communicators of row and column. *Collective*."""
        self._row.free()
        self._column.free()

    def across(self, layer: int) -> Communicator:
        """The ranks that hold the different groups of neurons of layer m = 0 ... L, this one among them."""
        return self._row if layer % 2 else self._column

    def forward(self, layers: list[LayerView], inputs: torch.Tensor, kept: Kept | None = None) -> torch.Tensor:
        """As ``Network.forward``, one reduction a layer."""
        values = inputs
        for layer in layers:
            if kept is not None:
                kept[layer.number] = values
            sums = self.kernels.affine(values, layer.weights, layer.biases)
            self._sum(sums, layer.number - 1, "forward")
            values = self.kernels.activate(self.activation, sums) if layer.number < len(layers) else sums
        return values

    def backward(self, layers: list[LayerView], kept: Kept, errors: torch.Tensor, gradient: list[LayerView]) -> None:
        """As ``Network.backward``, one reduction a layer but the first."""
        for layer, into in zip(reversed(layers), reversed(gradient), strict=True):
            inputs = kept[layer.number]
            self.kernels.add_gradient(inputs, errors, into.weights, into.biases)
            if layer.number > 1:
                errors = self._pulled(layer, inputs, errors, "backward")

    def tangents(self, layers: list[LayerView], kept: Kept, moves: list[LayerView]) -> torch.Tensor:
        """As ``Network.tangents``, with the reductions of a forward sweep."""
        tangent: torch.Tensor | None = None
        for layer, move in zip(layers, moves, strict=True):
            inputs = kept[layer.number]
            sums = self.kernels.affine(inputs, move.weights, move.biases)
            if tangent is not None:
                sums += self.kernels.affine(tangent, layer.weights, None)
            tangent = self._sum(sums, layer.number - 1, "forward")
            if layer.number < len(layers):
                self.kernels.scale_by_slope(self.activation, kept[layer.number + 1], tangent)
        assert tangent is not None
        return tangent

    def output_weights(self, layers: list[LayerView]) -> torch.Tensor:
        """W^L for this rank's inputs and all outputs, (u_L, C): where the factors begin. *Collective*."""
        return self.gather_outputs(layers[-1].weights, "factors")

    def factors(self, layers: list[LayerView], kept: Kept, output_weights: torch.Tensor | None) -> Kept:
        """As ``Network.factors``, from the last to the first, each in the memory in which its sum arrived."""
        found: Kept = {}
        for layer in reversed(layers[1:]):
            values = kept[layer.number]
            if layer.number == len(layers):
                assert output_weights is not None
                found[layer.number - 1] = self.kernels.last_factors(output_weights, self.activation, values)
            else:
                found[layer.number - 1] = self._pulled(layer, values, found[layer.number], "factors")
        return found

    def gather_outputs(self, own: torch.Tensor, label: str = "outputs") -> torch.Tensor:
        """As ``Network.gather_outputs``, one reduction over the groups of outputs."""
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
