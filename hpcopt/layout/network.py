"""A fully connected network cut over a grid of ranks: every rank holds one block of every layer; pure arithmetic.

Layers are numbered 1 to L, n_0 is the number of features. Layer m has weights W^m of shape (n_{m-1}, n_m), rows for
inputs, and biases b^m of shape (n_m,). In odd layers the inputs are cut over the rows of the grid and the outputs over
its columns, in even layers the reverse, so that the sum over the groups of inputs leaves every result on the ranks that
need it as the input of the next layer.
Shapes: R rows and Q columns; on one rank a block has u inputs and v outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from hpcopt.errors import UsageError
from hpcopt.layout.block import Block, block, blocks
from hpcopt.layout.grid import ProcessGrid


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


class NetworkLayout:
    """Sizes n_0 ... n_L on a grid.

    Args:
        sizes: n_0 ... n_L.
        grid: R rows and Q columns.

    Raises:
        UsageError: there are fewer than two sizes, one is not positive, or a layer has fewer neurons than groups.
    """

    def __init__(self, sizes: Sequence[int], grid: ProcessGrid) -> None:
        self.sizes, self.grid = tuple(sizes), grid
        if len(self.sizes) < 2 or min(self.sizes) < 1:
            raise UsageError(
                f"sizes = {list(sizes)} is no network: it must hold the numbers of features, of the neurons of each "
                "hidden layer and of outputs, all at least 1."
            )
        self._check_grid()

    @property
    def layers(self) -> int:
        """L."""
        return len(self.sizes) - 1

    def groups(self, layer: int) -> int:
        """Number of groups P_m that the neurons of layer m = 0 ... L are cut in."""
        return self.grid.columns if layer % 2 else self.grid.rows

    def group(self, layer: int, rank: int) -> int:
        """The group of the neurons of layer m = 0 ... L that a rank works on."""
        row, column = self.grid.coordinates(rank)
        return column if layer % 2 else row

    def parts_of(self, layer: int) -> list[Block]:
        """The P_m groups of the neurons of layer m = 0 ... L."""
        return blocks(self.sizes[layer], self.groups(layer))

    def neurons(self, layer: int, rank: int) -> Block:
        """The neurons of layer m = 0 ... L that a rank works on."""
        return block(self.sizes[layer], self.groups(layer), self.group(layer, rank))

    def features(self, rank: int) -> Block:
        """The columns T_0^a of the inputs that a rank must be given."""
        return self.neurons(0, rank)

    def outputs(self, rank: int) -> Block:
        """The columns T_L^b of the outputs, and of the targets, that a rank works on."""
        return self.neurons(self.layers, rank)

    def blocks(self, rank: int) -> list[LayerBlock]:
        """What a rank holds of the layers 1 ... L, in the order of its flat vector."""
        found, start = [], 0
        for number in range(1, self.layers + 1):
            inputs, outputs = self.neurons(number - 1, rank), self.neurons(number, rank)
            found.append(LayerBlock(number, inputs, outputs, self.group(number - 1, rank) == 0, start))
            start = found[-1].biases.stop
        return found

    def size(self, rank: int) -> int:
        """Length of a rank's flat vector."""
        last = self.blocks(rank)[-1]
        return last.start + (last.inputs.count + last.biased) * last.outputs.count

    @property
    def parameters(self) -> int:
        """All weights and biases of the network."""
        return sum((inputs + 1) * outputs for inputs, outputs in pairwise(self.sizes))

    def most(self, layer: int) -> int:
        """Neurons of layer m = 0 ... L on the rank that has most of them."""
        return block(self.sizes[layer], self.groups(layer), 0).count

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


def fitting(sizes: Sequence[int], ranks: int) -> str:
    """A sentence that says which grids of so many ranks fit a network, or how many ranks would."""
    rows, columns = min(sizes[0::2]), min(sizes[1::2])
    grids = [
        f"[{r}, {ranks // r}]" for r in range(1, ranks + 1) if ranks % r == 0 and r <= rows and ranks // r <= columns
    ]
    if grids:
        return f"With {ranks} ranks and sizes = {list(sizes)} these grids fit: {', '.join(grids)}."
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
    rows, columns = min(sizes[0::2]), min(sizes[1::2])
    grids = [(r, ranks // r) for r in range(1, ranks + 1) if ranks % r == 0 and r <= rows and ranks // r <= columns]
    if not grids:
        raise UsageError(fitting(sizes, ranks))
    return ProcessGrid(*min(grids, key=lambda grid: (abs(grid[0] - grid[1]), grid[0])))
