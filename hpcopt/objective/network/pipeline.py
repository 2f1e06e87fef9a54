"""Sweeps through a network whose layers are on ranks of their own: a pipeline of blocks of instances.

Where groups of neurons of layer m meet are the *vertices* of the network: around (m, b) are the ranks that compute the
group, C(m, b), and those that take it as inputs, R(m + 1, b). Partial sums of the first go to all of them in a forward
sweep, those of the second in a backward one, each by one non-blocking collective in which the others give zeros; where
only one rank gives, it is a broadcast. Wang et al. 2018 (arXiv:1802.00130, whose letters are used) sum on one side and
broadcast to the other; one collective has the same numbers in half as many steps.

The instances of a sweep go in blocks: while layer m works on one of them, layer m + 1 works on the one before it, so
that with B blocks L layers are done after L + B - 1 steps instead of L B. At each end of a rank two blocks are on their
way at a time. The slope of an activation is applied where the activations are kept, on the ranks that take them.

Messages, in numbers, around a vertex of n neurons, for b instances and C outputs, whatever the split: b n forward for
every vertex of the layers 1 ... L, b n backward and b C n for the factors for those of the layers 1 ... L - 1. A vertex
with a single rank around it sends nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.comm.request import Request
from hpcopt.kernels.interface import Kernels
from hpcopt.layout.block import blocks
from hpcopt.layout.disjoint import DisjointLayout
from hpcopt.layout.network import GridLayout, NetworkLayout
from hpcopt.objective.network.passes import GridNetwork, Kept, LayerView, Network

IN_FLIGHT = 2
"""Blocks on their way at each end of a rank: one is worked on while the other is sent."""

BLOCKS_A_LAYER = 4
"""B / L by default: with so many blocks at most a fifth of the steps fill and empty the pipeline."""

Start = Callable[[torch.Tensor], Request | None]
"""Begins a collective on a block of instances; None where there is nothing to send."""


class PipelinedNetwork(Network):
    """The sweeps with every layer on ranks of its own. *Collective*: makes the communicators of the vertices.

    Args:
        layout: who holds which block of which layer.
        activation: of the hidden layers; the output layer is linear.
        comm: all ranks of the layout.
        kernels: the local products.
        pipeline: blocks that the instances of a sweep go in, B; fewer instances go one by one.
    """

    def __init__(
        self,
        layout: DisjointLayout,
        activation: str,
        comm: Communicator,
        kernels: Kernels[torch.Tensor],
        pipeline: int,
    ) -> None:
        super().__init__(layout, activation, comm, kernels)
        self._comm, self._pipeline = comm, pipeline
        layer, a, b = layout.nodes(comm.rank)[0]
        self._is_last = layer == layout.layers
        # A rank is at a vertex of an even and one of an odd layer, so that two divisions of the ranks make them all.
        ends = {number % 2: (number, group) for number, group in ((layer - 1, a), (layer, b))}
        widest = max(layout.split)
        parts = [comm.split(number * widest + group) for number, group in (ends[0], ends[1])]
        self._before = _Vertex(parts[(layer - 1) % 2], layout, layer - 1)
        self._after = _Vertex(parts[layer % 2], layout, layer)
        self.output_groups = comm.split(a if self._is_last else widest + comm.rank)

    def free(self) -> None:
        """Give back the communicators of the vertices. *Collective*."""
        for group in (self._before.comm, self._after.comm, self.output_groups):
            group.free()

    def forward(self, layers: list[LayerView], inputs: torch.Tensor, kept: Kept | None = None) -> torch.Tensor:
        """As ``Network.forward``, one collective a vertex and block of instances."""
        (layer,) = layers
        first = layer.number == 1
        values = inputs if first else inputs.new_zeros(len(inputs), len(layer.weights))
        if kept is not None:
            kept[layer.number] = values

        def work(rows: slice) -> torch.Tensor:
            """The layer's sums for these instances (rows, v_l)."""
            given = values[rows] if first else self.kernels.activate(self.activation, values[rows])
            return self.kernels.affine(given, layer.weights, layer.biases)

        return self._forward(inputs, None if first else values, work)

    def backward(self, layers: list[LayerView], kept: Kept, errors: torch.Tensor, gradient: list[LayerView]) -> None:
        """As ``Network.backward``, one collective a vertex and block of instances."""
        (layer,), (into,) = layers, gradient
        inputs = kept[layer.number]
        arriving = errors if self._is_last else errors.new_zeros(len(errors), layer.weights.shape[1])

        def work(rows: slice) -> torch.Tensor | None:
            """Add their part of the gradient; the errors of the layer before (rows, v_l-1)."""
            self.kernels.add_gradient(inputs[rows], arriving[rows], into.weights, into.biases)
            return self._pulled(layer, inputs[rows], arriving[rows]) if layer.number > 1 else None

        self._backward(arriving, work, "backward")

    def tangents(self, layers: list[LayerView], kept: Kept, moves: list[LayerView]) -> torch.Tensor:
        """As ``Network.tangents``, with the collectives of a forward sweep."""
        (layer,), (move,) = layers, moves
        inputs = kept[layer.number]
        tangents = None if layer.number == 1 else torch.zeros_like(inputs)

        def work(rows: slice) -> torch.Tensor:
            """The tangents of the layer's sums (rows, v_l)."""
            sums = self.kernels.affine(inputs[rows], move.weights, move.biases)
            if tangents is not None:
                self.kernels.scale_by_slope(self.activation, inputs[rows], tangents[rows])
                sums += self.kernels.affine(tangents[rows], layer.weights, None)
            return sums

        return self._forward(inputs, tangents, work)

    def output_weights(self, layers: list[LayerView]) -> torch.Tensor | None:
        """W^L (u_L, C) with this rank's columns, and 0 for the others, on the ranks of the last layer. Local."""
        return self._widened(layers[-1].weights) if self._is_last else None

    def factors(self, layers: list[LayerView], kept: Kept, output_weights: torch.Tensor | None) -> Kept:
        """As ``Network.factors``, one collective a vertex and block of instances."""
        (layer,) = layers
        inputs, found = kept[layer.number], Kept()
        if self.layout.layers == 1:
            return found
        if not self._is_last:
            found[layer.number] = inputs.new_zeros(len(inputs), self.width, layer.weights.shape[1])

        def work(rows: slice) -> torch.Tensor | None:
            """The factors of the layer before (rows, outputs, v_l-1)."""
            if output_weights is not None:
                return self.kernels.last_factors(output_weights, self.activation, inputs[rows])
            return self._pulled(layer, inputs[rows], found[layer.number][rows]) if layer.number > 1 else None

        self._backward(found.get(layer.number, inputs), work, "factors")
        return found

    def gather_outputs(self, own: torch.Tensor, label: str = "outputs") -> torch.Tensor:
        """As ``Network.gather_outputs``, one reduction over all ranks. *Collective*."""
        whole = self._widened(own)
        if not self.is_first:
            whole.zero_()
        if self._comm.size > 1:
            self._comm.allreduce(whole, label=label)
        return whole

    def _widened(self, own: torch.Tensor) -> torch.Tensor:
        """Columns for all outputs, with this rank's in their place and 0 for the others."""
        whole = own.new_zeros(own.shape[0], self.width)
        whole[:, self.outputs.slice] = own
        return whole

    def _pulled(self, layer: LayerView, inputs: torch.Tensor, errors: torch.Tensor) -> torch.Tensor:
        """This rank's part of the errors or factors of the layer before."""
        return self.kernels.scale_by_slope(self.activation, inputs, self.kernels.pull_back(errors, layer.weights))

    def _forward(
        self, inputs: torch.Tensor, arriving: torch.Tensor | None, work: Callable[[slice], torch.Tensor]
    ) -> torch.Tensor:
        """Blocks arrive from the layer before, and what ``work`` makes of them goes to the next one. *Collective*.

        Returns:
            What the last layer came to (b, v_L).
        """
        found: list[torch.Tensor] = []

        def give(rows: slice) -> Request | None:
            """Send what these instances came to, or keep it where no layer follows."""
            sums = work(rows)
            if self._is_last:
                found.append(sums)
            return self._after.forward(sums)

        self._flow(len(inputs), arriving, self._before.forward, give)
        return torch.cat(found) if self._is_last else inputs.new_zeros(len(inputs), 0)

    def _backward(self, arriving: torch.Tensor, work: Callable[[slice], torch.Tensor | None], label: str) -> None:
        """Blocks arrive from the layer behind, and what ``work`` makes of them goes to the one before. *Collective*."""

        def give(rows: slice) -> Request | None:
            """Send what these instances came to, unless no layer comes before."""
            part = work(rows)
            return None if part is None else self._before.backward(part, label)

        take = None if self._is_last else arriving
        self._flow(len(arriving), take, lambda rows: self._after.backward(rows, label), give)

    def _flow(
        self, count: int, arriving: torch.Tensor | None, take: Start, give: Callable[[slice], Request | None]
    ) -> None:
        """Take every block of instances from one end and give what comes of it to the other. *Collective*."""
        parts = [part.slice for part in blocks(count, max(1, min(self._pipeline, count)))]

        def begin(rows: slice) -> Request | None:
            return None if arriving is None else take(arriving[rows])

        arrivals, departures = deque(map(begin, parts[:IN_FLIGHT])), deque[Request | None]()
        for number, rows in enumerate(parts):
            _wait(arrivals.popleft())
            arrivals.extend(map(begin, parts[number + IN_FLIGHT : number + IN_FLIGHT + 1]))
            departures.append(give(rows))
            if len(departures) > IN_FLIGHT:
                _wait(departures.popleft())
        for departure in departures:
            _wait(departure)


def make_network(
    layout: NetworkLayout, activation: str, comm: Communicator, pipeline: int | None, kernels: Kernels[torch.Tensor]
) -> Network:
    """The sweeps that fit the layout. *Collective*.

    Args:
        layout: who holds which block of every layer.
        activation: of the hidden layers.
        comm: all ranks.
        pipeline: B where layers are on ranks of their own; None for 4 a layer.
        kernels: the local products.
    """
    if isinstance(layout, GridLayout):
        return GridNetwork(layout, activation, comm, kernels)
    assert isinstance(layout, DisjointLayout)
    return PipelinedNetwork(layout, activation, comm, kernels, pipeline or BLOCKS_A_LAYER * layout.layers)


class _Vertex:
    """The ranks around a group of neurons: those that compute it, and behind them those that take it as inputs.

    Args:
        comm: these ranks, in the order of all.
        layout: of the network.
        layer: m of the neurons, from 0.
    """

    def __init__(self, comm: Communicator, layout: DisjointLayout, layer: int) -> None:
        self.comm = comm
        computing = layout.groups(layer - 1) if layer else 0
        self._computing, self._taking = range(computing), range(computing, comm.size)

    def forward(self, part: torch.Tensor) -> Request | None:
        """Begin to sum, in place and for all, the parts of the ranks that compute; the others' must be 0."""
        return self._start(part, self._computing, "forward")

    def backward(self, part: torch.Tensor, label: str) -> Request | None:
        """Begin to sum, in place and for all, the parts of the ranks that take; the others' must be 0."""
        return self._start(part, self._taking, label)

    def _start(self, part: torch.Tensor, givers: range, label: str) -> Request | None:
        if self.comm.size == 1:
            return None
        if len(givers) == 1:
            return self.comm.ibcast(part, givers[0], label=label)
        return self.comm.iallreduce(part, label=label)


def _wait(request: Request | None) -> None:
    if request is not None:
        request.wait()
