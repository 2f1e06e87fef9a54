"""Messages of an objective's functions in closed form, by how samples and variables are spread over the ranks.

A message is counted as the ledger counts it: by the bytes of a rank's buffer (the whole vector for reductions and for
gathered results). Methods add these up in ``hpcopt.costs.methods``. Shapes: n numbers of w on a rank, N of the whole,
R ranks, k scalars.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hpcopt.layout.block import block
from hpcopt.layout.blocks import variable_grid
from hpcopt.objective.buckets import cut, cut_forward
from hpcopt.objective.data_parallel import BUCKET_BYTES
from hpcopt.objective.exact_sum import DIGITS
from hpcopt.objective.sharded.gathering import PART_BYTES


class Message(NamedTuple):
    """Collective calls of one kind.

    Attributes:
        kind: "allreduce", "broadcast", "allgather" or "reduce_scatter".
        label: the ledger's account.
        bytes: of this rank's buffers in all the calls together.
        ranks: in the group that calls.
        calls: in an iteration; a mean where not every one has them.
    """

    kind: str
    label: str
    bytes: float
    ranks: int
    calls: float = 1.0


Messages = list[Message]


def scaled(messages: Iterable[Message], factor: float) -> Messages:
    """The messages ``factor`` times."""
    return [m._replace(bytes=factor * m.bytes, calls=factor * m.calls) for m in messages]


class Spread(ABC):
    """How samples and variables are spread: the messages of each function that an objective has.

    Attributes:
        ranks: R.
        itemsize: bytes of a number of w.
    """

    def __init__(self, ranks: int, itemsize: int) -> None:
        self.ranks, self.itemsize = ranks, itemsize

    @abstractmethod
    def gradient(self) -> Messages:
        """``value_and_gradient`` on a batch."""

    @abstractmethod
    def value(self) -> Messages:
        """``value`` on a batch."""

    @abstractmethod
    def inner(self, count: int) -> Messages:
        """``count`` inner products in one call, the same on all ranks."""

    @abstractmethod
    def dot(self) -> Messages:
        """One inner product that need not have the same bits on all ranks."""

    @abstractmethod
    def subset(self) -> Messages:
        """The choice of a part of a batch."""

    @abstractmethod
    def linearize(self) -> Messages:
        """The linearisation on a part of the batch."""

    @abstractmethod
    def product(self) -> Messages:
        """One product with the Gauss-Newton matrix."""

    @abstractmethod
    def curvatures(self, count: int) -> Messages:
        """D G D^T for ``count`` directions."""

    def agree(self, count: int) -> Messages:
        """Rank 0's ``count`` numbers on all ranks."""
        return [Message("broadcast", "scalars", 8 * count, self.ranks)] if self.ranks > 1 else []

    def reduced(self, label: str, numbers: float, itemsize: int = 8) -> Message:
        """A reduction of so many numbers over all ranks."""
        return Message("allreduce", label, numbers * itemsize, self.ranks)

    def tail(self, scalars: int) -> int:
        """Numbers that exact scalars take behind a vector."""
        return scalars if self.itemsize == 8 else scalars * DIGITS


class Replicated(Spread):
    """Every rank holds all of w and a shard of the samples.

    Args:
        counts: numbers in each parameter tensor of the model.
        ranks: R.
        itemsize: bytes of a number of w.
        whole_batch: whether a rank evaluates its part of a batch in one piece.
    """

    def __init__(self, counts: Sequence[int], ranks: int, itemsize: int, whole_batch: bool = True) -> None:
        super().__init__(ranks, itemsize)
        self.size = sum(counts)
        buckets = len(cut(list(counts), max(1, BUCKET_BYTES // itemsize)))
        self._buckets = buckets if ranks > 1 and whole_batch and buckets > 1 else 0

    def gradient(self) -> Messages:
        """One reduction of n numbers and the loss; a long gradient in buckets, with the loss behind them."""
        if not self._buckets:
            return self._at_once()
        vector = self.reduced("gradient", self.size, self.itemsize)._replace(calls=self._buckets)
        return [vector, self.reduced("loss", self.tail(2), self.itemsize)]

    def own_gradients(self) -> Messages:
        """``value_and_gradients``: always one reduction."""
        return self._at_once()

    def _at_once(self) -> Messages:
        return [self.reduced("gradient", self.size + self.tail(2), self.itemsize)]

    def value(self) -> Messages:
        """One reduction of two scalars."""
        return [self.reduced("value", 2)]

    def combine(self, scalars: int, own: int) -> Messages:
        """A vector, scalars with two counts of work and a flag, and a row of ``own`` numbers from every rank."""
        return [self.reduced("step", self.size + self.tail(scalars + 3) + own * self.ranks, self.itemsize)]

    def inner(self, count: int) -> Messages:
        """Products are local, and rank 0's are taken."""
        return self.agree(count)

    def dot(self) -> Messages:
        """Nothing."""
        return []

    def subset(self) -> Messages:
        """How many samples the ranks before have: one number a rank."""
        return [self.reduced("subset", self.ranks)]

    def linearize(self) -> Messages:
        """Nothing."""
        return []

    def product(self) -> Messages:
        """One reduction of n numbers."""
        return [self.reduced("product", self.size, self.itemsize)]

    def curvatures(self, count: int) -> Messages:
        """One reduction of scalars."""
        return [self.reduced("curvatures", count**2)]

    def factors(self, numbers: int, inverses: int) -> Messages:
        """Kronecker factors of ``numbers`` in all, and their ``inverses``, each from the rank that computed it."""
        sent = [self.reduced("factors", numbers, self.itemsize), *self.agree(1)]
        return [*self.subset(), *sent, Message("allgather", "inverses", inverses * self.itemsize, self.ranks)]


class VariableBlocks(Replicated):
    """APTS with layout = "variables": as ``Replicated``, but the ranks of a row of a grid share their samples.

    Args:
        counts: numbers in each parameter tensor of the model.
        ranks: R.
        itemsize: bytes of a number of w.
        shards: rows of the grid.
        rank: which rank's bytes are counted; those of the last column are the most.
    """

    def __init__(self, counts: Sequence[int], ranks: int, itemsize: int, shards: int, rank: int) -> None:
        super().__init__(counts, ranks, itemsize)
        self.grid = variable_grid(ranks, shards)
        self._column = self.grid.coordinates(rank)[1]

    def own_gradients(self) -> Messages:
        """In the row, then a part in the column, which the row gathers; one reduction where either has one rank."""
        rows, columns = self.grid.rows, self.grid.columns
        if columns == 1:
            return super().own_gradients()
        if rows == 1:
            return self.gradient()
        whole, last = (self.size + self.tail(2)) * self.itemsize, self._column == columns - 1
        part = (block(self.size, columns, self._column).count + last * self.tail(2)) * self.itemsize
        return [
            Message("allreduce", "gradient", whole, columns),
            Message("allreduce", "gradient", part, rows),
            Message("allgather", "gradient", whole, columns),
        ]


class Cut(Spread):
    """Variables are cut over the ranks: inner products are reductions, with the same bits everywhere."""

    def inner(self, count: int) -> Messages:
        """One reduction."""
        return [self.reduced("dot", count)]

    def dot(self) -> Messages:
        """One reduction."""
        return self.inner(1)


class Sharded(Cut):
    """state = "sharded": w is gathered for an evaluation, and what comes of it is scattered.

    Args:
        counts: numbers in each parameter tensor of the model, N together.
        ranks: R.
        itemsize: bytes of a number of w.
    """

    def __init__(self, counts: Sequence[int], ranks: int, itemsize: int) -> None:
        super().__init__(ranks, itemsize)
        self._bytes = sum(counts) * itemsize
        self._parts = len(cut_forward(list(counts), PART_BYTES // itemsize)) if ranks > 1 else 1

    def gather(self) -> Messages:
        """W on all ranks."""
        return [Message("allgather", "variables", self._bytes, self.ranks)]

    def gather_beside(self) -> Messages:
        """The same for an evaluation of the model, a long w in parts."""
        return [message._replace(calls=self._parts) for message in self.gather()]

    def gradient(self) -> Messages:
        """Gathered w, and a scattered sum with the loss in digits behind every rank's part."""
        behind = 2 * DIGITS * self.ranks * self.itemsize
        return [*self.gather_beside(), Message("reduce_scatter", "gradient", self._bytes + behind, self.ranks)]

    def value(self) -> Messages:
        """Gathered w, and one reduction of two scalars."""
        return [*self.gather_beside(), self.reduced("value", 2)]

    def subset(self) -> Messages:
        """How many samples the ranks before have: one number a rank."""
        return [self.reduced("subset", self.ranks)]

    def linearize(self) -> Messages:
        """Gathered w."""
        return self.gather()

    def product(self) -> Messages:
        """A gathered vector and a scattered one."""
        return [*self.gather(), Message("reduce_scatter", "product", self._bytes, self.ranks)]

    def curvatures(self, count: int) -> Messages:
        """Every direction gathered, and one reduction of scalars."""
        return [*scaled(self.gather(), count), self.reduced("curvatures", count**2)]
