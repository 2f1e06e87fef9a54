"""Messages of a network that is cut over a grid of ranks, in closed form.

Letters as in ``hpcopt.objective.network.passes``: b instances, C outputs, blocks of u_m inputs and v_m outputs in layer
m = 1 ... L on a rank, groups P_m of the neurons of layer m. Nothing is sent over a single group.
"""

from __future__ import annotations

import math

from hpcopt.costs.messages import Cut, Message, Messages, scaled
from hpcopt.layout.network import GridLayout
from hpcopt.objective.network.objective import PIECE_BYTES


class Grid(Cut):
    """layout = "variables" for methods other than APTS.

    Args:
        layout: who holds which block.
        rank: which rank's messages are counted; those of rank 0 are the most.
        itemsize: bytes of a number of w.
        batch: instances of a gradient.
        subset: instances of a linearisation.
        splits: whether the loss crosses the groups of outputs (cross-entropy does).
        explicit: whether the factors of the Jacobian are kept, else products are sweeps.
        micro_batch: most instances in a sweep; by default as the objective chooses.
    """

    def __init__(
        self,
        layout: GridLayout,
        rank: int,
        itemsize: int,
        batch: int,
        subset: int,
        *,
        splits: bool,
        explicit: bool = True,
        micro_batch: int | None = None,
    ) -> None:
        super().__init__(layout.ranks, itemsize)
        self.layout, self.batch, self.samples, self.explicit = layout, batch, subset, explicit
        self._blocks, self.outputs = layout.blocks(rank), layout.sizes[-1]
        self._splits = splits and layout.groups(layout.layers) > 1
        widest = max(layout.most(layer) for layer in range(len(layout.sizes)))
        self.piece = micro_batch or max(1, PIECE_BYTES // (widest * itemsize))

    def forward(self, count: int) -> Messages:
        """B v_m for every layer, over the groups of its inputs."""
        return self._swept("forward", count, [(b.outputs.count, b.number - 1) for b in self._blocks])

    def backward(self, count: int) -> Messages:
        """B u_m for every layer but the first, over the groups of its outputs."""
        return self._swept("backward", count, [(b.inputs.count, b.number) for b in self._blocks[1:]])

    def softmax(self, count: int, numbers: int = 2) -> Messages:
        """So many numbers an instance over the groups of outputs, a call each."""
        crossed = self._swept("softmax", count, [(1, self.layout.layers)] * numbers)
        return crossed if self._splits else []

    def value(self) -> Messages:
        """A sweep forward and one reduction of two scalars."""
        return [*self.forward(self.batch), *self.softmax(self.batch), self.reduced("value", 2)]

    def gradient(self) -> Messages:
        """As ``value``, and a sweep backward."""
        return [*self.value(), *self.backward(self.batch)]

    def subset(self) -> Messages:
        """Nothing: all ranks see all instances."""
        return []

    def linearize(self) -> Messages:
        """A sweep forward; with factors u_L C and b C u_m for m = 2 ... L - 1, and b C where outputs are split."""
        made = [*self.forward(self.samples), *self.softmax(self.samples)]
        if not self.explicit:
            return made
        last, layers = self._blocks[-1], self.layout.layers
        whole = self._swept("softmax", self.samples, [(self.outputs, layers)]) if self._splits else []
        middle = [(self.outputs * b.inputs.count, b.number) for b in self._blocks[1:-1]]
        begun = [] if layers == 1 else self._swept("factors", 1, [(last.inputs.count * self.outputs, layers)])
        return [*made, *whole, *begun, *self._swept("factors", self.samples, middle)]

    def product(self) -> Messages:
        """B C numbers over all ranks; without factors a sweep forward and one backward."""
        if not self.explicit:
            return [*self.forward(self.samples), *self.softmax(self.samples, 1), *self.backward(self.samples)]
        return [self.reduced("product", self.samples * self.outputs, self.itemsize)] if self.ranks > 1 else []

    def curvatures(self, count: int) -> Messages:
        """K b C numbers with k^2 scalars, and k^2 from rank 0; without factors k sweeps forward and k^2 scalars."""
        if not self.explicit:
            swept = [*self.forward(self.samples), *self.softmax(self.samples, 1)]
            return [*scaled(swept, count), self.reduced("curvatures", count**2)]
        numbers = count * self.samples * self.outputs + self.tail(count**2)
        return [self.reduced("curvatures", numbers, self.itemsize), *self.agree(count**2)]

    def block_end(self) -> Messages:
        """What all ranks came to with their blocks: three numbers a rank."""
        return [self.reduced("block", 3 * self.ranks)]

    def _swept(self, label: str, count: int, arrays: list[tuple[int, int]]) -> Messages:
        """Reductions of ``count`` rows over groups: of each array its numbers a row and the layer it is of."""
        calls = math.ceil(count / self.piece)
        over = [(numbers, self.layout.groups(layer)) for numbers, layer in arrays]
        return [
            Message("allreduce", label, numbers * count * self.itemsize, groups, calls)
            for numbers, groups in over
            if groups > 1
        ]
