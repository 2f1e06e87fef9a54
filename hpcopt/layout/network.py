"""A fully connected network whose layers are cut in blocks, and which rank of a grid holds which; pure arithmetic.

Layers are numbered 1 to L, n_0 is the number of features. Layer m has weights W^m of shape (n_{m-1}, n_m), rows for
inputs, and biases b^m of shape (n_m,). Its neurons are cut in P_m groups T_m^b, so that it has P_{m-1} P_m blocks.
``hpcopt.layout.disjoint`` has the other table of blocks and ranks, in which every layer is on ranks of its own.
Shapes: R rows and Q columns; on one rank a block has u inputs and v outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from hpcopt.errors import UsageError
from hpcopt.layout.block import Block, block, blocks
from hpcopt.layout.grid import ProcessGrid

NOTHING = Block(0, 0)


class LayerBlock(NamedTuple):
    """What one rank holds of one layer.

    Attributes:
        number: m, from 1.
        inputs: the u inputs T_{m-1}^a.
        outputs: the v outputs T_m^b.
        biased: the rank also holds b^m of its outputs: it is of the first group of inputs.
        start: where the block begins in the rank's flat vector; the weights come first, row by row, then the biases.
    """

    number: int
    inputs: Block
    outputs: Block
    biased: bool
    start: int

    @property
    def weights(self) -> slice:
        """Where the u * v weights lie in the rank's flat vector."""
        return slice(self.start, self.start + self.inputs.count * self.outputs.count)

    @property
    def biases(self) -> slice:
        """Where the v biases lie in the rank's flat vector; empty unless ``biased``."""
        return slice(self.weights.stop, self.weights.stop + self.biased * self.outputs.count)


class ArrayPart(NamedTuple):
    """The part of a weight matrix or a bias vector that one rank holds.

    Attributes:
        name: of the whole array.
        shape: of the whole array.
        start: first index of the part in every dimension.
        count: size of the part in every dimension.
        place: where the part lies in the rank's flat vector, row by row.
    """

    name: str
    shape: tuple[int, ...]
    start: tuple[int, ...]
    count: tuple[int, ...]  # type: ignore[assignment]  # a shape; tuple.count is of no use here
    place: slice


class Node(NamedTuple):
    """A block of a layer by its place in the cut: W^m[T_{m-1}^a, T_m^b].

    Attributes:
        layer: m, from 1.
        inputs: a, the group of the neurons of layer m - 1.
        outputs: b, the group of the neurons of layer m.
    """

    layer: int
    inputs: int
    outputs: int


class NetworkLayout(ABC):
    """Who holds which block of every layer of a network with sizes n_0 ... n_L: the table from blocks to ranks.

    Args:
        sizes: n_0 ... n_L.

    Attributes:
        sizes: as given.
        ranks: number of them.

    Raises:
        UsageError: there are fewer than two sizes, or one is not positive.
    """

    ranks: int

    def __init__(self, sizes: Sequence[int]) -> None:
        check_sizes(sizes)
        self.sizes = tuple(sizes)

    @abstractmethod
    def groups(self, layer: int) -> int:
        """Number of groups P_m that the neurons of layer m = 0 ... L are cut in."""

    @abstractmethod
    def nodes(self, rank: int) -> list[Node]:
        """The blocks of a rank, at most one of a layer, in the order of the layers."""

    @property
    @abstractmethod
    def described(self) -> dict[str, Any]:
        """What tells this layout from others of the same network, for the record."""

    @property
    def layers(self) -> int:
        """L."""
        return len(self.sizes) - 1

    def parts_of(self, layer: int) -> list[Block]:
        """The P_m groups of the neurons of layer m = 0 ... L."""
        return blocks(self.sizes[layer], self.groups(layer))

    def features(self, rank: int) -> Block:
        """The columns T_0^a of the inputs that a rank must be given; empty where it holds nothing of layer 1."""
        first = self.nodes(rank)[0]
        return self._neurons(0, first.inputs) if first.layer == 1 else NOTHING

    def outputs(self, rank: int) -> Block:
        """The columns T_L^b of the outputs, and of the targets, that a rank works on; empty where it has none."""
        last = self.nodes(rank)[-1]
        return self._neurons(self.layers, last.outputs) if last.layer == self.layers else NOTHING

    def blocks(self, rank: int) -> list[LayerBlock]:
        """What a rank holds, in the order of the layers and of its flat vector."""
        found, start = [], 0
        for layer, a, b in self.nodes(rank):
            inputs, outputs = self._neurons(layer - 1, a), self._neurons(layer, b)
            found.append(LayerBlock(layer, inputs, outputs, a == 0, start))
            start = found[-1].biases.stop
        return found

    def all_blocks(self, rank: int) -> list[LayerBlock]:
        """As ``blocks``, with an empty one for every layer of which the rank holds nothing."""
        held = {block.number: block for block in self.blocks(rank)}
        return [held.get(m, LayerBlock(m, NOTHING, NOTHING, False, 0)) for m in range(1, self.layers + 1)]

    def size(self, rank: int) -> int:
        """Length of a rank's flat vector."""
        return sum((held.inputs.count + held.biased) * held.outputs.count for held in self.blocks(rank))

    @property
    def parameters(self) -> int:
        """All weights and biases of the network."""
        return sum((inputs + 1) * outputs for inputs, outputs in pairwise(self.sizes))

    def most(self, layer: int) -> int:
        """Neurons of layer m = 0 ... L on the rank that has most of them."""
        return self._neurons(layer, 0).count

    def parts(self, rank: int) -> list[ArrayPart]:
        """Where everything that a rank holds lies in the whole arrays ``W1``, ``b1``, ``W2``, ...

        Over all ranks the parts cover each array once.
        """
        found = []
        for held in self.blocks(rank):
            shape = (self.sizes[held.number - 1], self.sizes[held.number])
            start, count = zip(held.inputs, held.outputs, strict=True)
            found.append(ArrayPart(f"W{held.number}", shape, start, count, held.weights))
            if held.biased:
                outputs = held.outputs
                found.append(ArrayPart(f"b{held.number}", shape[1:], (outputs.start,), (outputs.count,), held.biases))
        return found

    def _neurons(self, layer: int, group: int) -> Block:
        return block(self.sizes[layer], self.groups(layer), group)


class GridLayout(NetworkLayout):
    """Every rank of a grid holds a block of every layer.

    In odd layers the inputs are cut over the rows of the grid and the outputs over its columns, in even layers the
    reverse, so that the sum over the groups of inputs leaves every result on the ranks that need it as the input of the
    next layer.

    Args:
        sizes: n_0 ... n_L.
        grid: R rows and Q columns.

    Raises:
        UsageError: there are fewer than two sizes, one is not positive, or a layer has fewer neurons than groups.
    """

    def __init__(self, sizes: Sequence[int], grid: ProcessGrid) -> None:
        super().__init__(sizes)
        self.grid, self.ranks = grid, grid.size
        self._check_grid()

    def groups(self, layer: int) -> int:
        """Rows for even layers, columns for odd ones."""
        return self.grid.columns if layer % 2 else self.grid.rows

    def nodes(self, rank: int) -> list[Node]:
        """One block of every layer."""
        row, column = self.grid.coordinates(rank)
        return [Node(m, *((row, column) if m % 2 else (column, row))) for m in range(1, self.layers + 1)]

    @property
    def described(self) -> dict[str, Any]:
        """Rows and columns."""
        return {"grid": list(self.grid)}

    def _check_grid(self) -> None:
        """Refuse a grid with more groups than a layer has neurons."""
        for number, size in enumerate(self.sizes):
            groups = self.groups(number)
            if size >= groups:
                continue
            layer = "features" if number == 0 else f"neurons of layer {number}"
            line = "columns" if number % 2 else "rows"
            raise UsageError(
                f"grid = [{self.grid.rows}, {self.grid.columns}] cuts the {size} {layer} in {groups} groups, one for "
                f"each of its {line}: every group needs at least one. {fitting(self.sizes, self.grid.size)}"
            )


def check_sizes(sizes: Sequence[int]) -> None:
    """Refuse fewer than two layers of neurons, and a layer without any.

    Raises:
        UsageError: see above.
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise UsageError(
            f"sizes = {list(sizes)} is no network: it must hold the numbers of features, of the neurons of each hidden "
            "layer and of outputs, all at least 1."
        )


def fitting(sizes: Sequence[int], ranks: int) -> str:
    """A sentence that says which grids of so many ranks fit a network, or how many ranks would."""
    grids = ", ".join(f"[{grid.rows}, {grid.columns}]" for grid in _grids(sizes, ranks))
    if grids:
        return f"With {ranks} ranks and sizes = {list(sizes)} these grids fit: {grids}."
    rows, columns = min(sizes[0::2]), min(sizes[1::2])
    return (
        f"No grid of {ranks} ranks fits sizes = {list(sizes)}: at most {rows} rows and {columns} columns do. Start "
        f"{rows * columns} ranks with grid = [{rows}, {columns}], or fewer, or give the network wider layers."
    )


def network_grid(sizes: Sequence[int], ranks: int) -> ProcessGrid:
    """The grid of so many ranks that fits the network and is nearest to a square, with rows <= columns if both fit.

    >>> network_grid([784, 512, 10], 6)
    ProcessGrid(rows=2, columns=3)
    >>> network_grid([784, 512, 2], 9)
    ProcessGrid(rows=1, columns=9)

    Raises:
        UsageError: none fits.
    """
    if not (grids := _grids(sizes, ranks)):
        raise UsageError(fitting(sizes, ranks))
    return min(grids, key=lambda grid: (abs(grid.rows - grid.columns), grid.rows))


def _grids(sizes: Sequence[int], ranks: int) -> list[ProcessGrid]:
    """The grids of so many ranks that leave no group empty: even layers are cut over rows, odd ones over columns."""
    grids = [ProcessGrid(rows, ranks // rows) for rows in range(1, ranks + 1) if ranks % rows == 0]
    return [grid for grid in grids if grid.rows <= min(sizes[0::2]) and grid.columns <= min(sizes[1::2])]
