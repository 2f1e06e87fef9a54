"""How the features of a batch get known to all ranks, and in which form those of the latest batches are kept.

A batch is kept as its Gram matrix Z Z^T or, where that would lose too much, as a triangle F with F^T F = Z Z^T:
directions with sigma < sqrt(u) sigma_1 are lost in a Gram matrix, whose rounding is about u m sigma_1^2. Its rows reach
all ranks as one sum of Gram matrices, as a triangle by an operation that combines two of them, or as they are where
they are fewer numbers than either: N (m + t) instead of m (m + 1) / 2 + m t + 1. That they are is settled without
regard to the number of ranks, on which the steps then do not depend.

Shapes: m columns of the design with that of the bias, t outputs, N rows over all ranks, r batches. All in float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple, Protocol

import torch

from hpcopt.linalg import tsqr
from hpcopt.linalg.sampled_tikhonov import Sampled, SampledGram, SampledTriangle
from hpcopt.objective.separable import Rows, Separable

FORMS = ("auto", "gram", "tsqr", "gather")
ROUNDINGS = 100.0
"""A Gram matrix will do when lambda, or its smallest eigenvalue, is at least this many of its roundings."""


class Plan(NamedTuple):
    """How a batch is made known: whether its rows are gathered, and whether a triangle is made of them."""

    gather: bool
    triangle: bool

    @property
    def form(self) -> str:
        """Its name among ``FORMS``."""
        return "gather" if self.gather else "tsqr" if self.triangle else "gram"


class KnownBatch(Protocol):
    """The features of the new batch and their residual, as all ranks know them.

    Attributes:
        block: what is kept of the features, (m, m).
        square: |R|^2.
    """

    @property
    def block(self) -> torch.Tensor:
        """See above."""
        ...

    @property
    def square(self) -> float:
        """See above."""
        ...

    @property
    def finite(self) -> bool:
        """Whether all numbers are."""
        ...

    def sampled(self, window: torch.Tensor, weights: torch.Tensor) -> Sampled:
        """The batch in the basis of itself and of the blocks (r, m, m) before it; ``weights`` is W (t, m)."""
        ...


@dataclass(frozen=True)
class GramBatch:
    """By Gram matrices: Z Z^T (m, m), S = R Z^T (t, m) and |R|^2."""

    block: torch.Tensor
    cross: torch.Tensor
    square: float

    @property
    def finite(self) -> bool:
        """Whether all numbers are."""
        return _finite(self.block, self.cross, self.square)

    def sampled(self, window: torch.Tensor, weights: torch.Tensor) -> Sampled:
        """See ``KnownBatch``."""
        return SampledGram(window.sum(0) + self.block, self.block, self.cross, self.square, weights)


@dataclass(frozen=True)
class TriangleBatch:
    """By a triangle, of which the right-hand sides are R^T."""

    state: tsqr.Triangle

    @property
    def block(self) -> torch.Tensor:
        """F."""
        return self.state.factor

    @property
    def square(self) -> float:
        """|R|^2."""
        return float(self.state.right.square().sum()) + self.state.tail

    @property
    def finite(self) -> bool:
        """Whether all numbers are."""
        return _finite(self.state.factor, self.state.right, self.state.tail)

    def sampled(self, window: torch.Tensor, weights: torch.Tensor) -> Sampled:
        """See ``KnownBatch``."""
        return SampledTriangle(window.reshape(-1, weights.shape[1]), self.state, weights)


def plan(form: str, separable: Separable, rows: int, loses: bool) -> Plan:
    """How a batch of ``rows`` N is made known.

    Rows that are gathered become a triangle: there are few of them, and nothing is lost.

    Args:
        form: one of ``FORMS``.
        separable: the model and its ranks.
        rows: N.
        loses: whether a Gram matrix would lose too much.
    """
    if form != "auto":
        return Plan(form == "gather", form != "gram")
    raw = rows * (separable.width + separable.outputs)
    gather = raw < tsqr.packed_size(separable.width, separable.outputs)
    return Plan(gather, gather or loses)


def loses(least: float, smallest: float, largest: float, width: int) -> bool:
    """Whether the Gram matrix of a window loses too much, where lambda is at least ``least``.

    Args:
        least: lower bound of lambda.
        smallest: square of the smallest singular value of the window's features.
        largest: square of the largest.
        width: m.
    """
    return max(least, smallest) < ROUNDINGS * torch.finfo(torch.float64).eps * width * largest


def converted(window: torch.Tensor, triangle: bool) -> torch.Tensor:
    """Gram matrices (r, m, m) as F with F^T F = Z Z^T, or such F as Gram matrices."""
    if not triangle:
        grams: torch.Tensor = window.mT @ window
        return grams
    squares, vectors = torch.linalg.eigh(window)
    factors: torch.Tensor = squares.clamp_(min=0.0).sqrt_()[..., None] * vectors.mT
    return factors


def make_known(plan: Plan, separable: Separable, parts: Iterable[Rows]) -> KnownBatch:
    """The batch of which every rank has some rows, on all of them. *Collective*."""
    if plan.gather:
        width = separable.width
        own = [torch.cat([_full(part, width), part.residual], dim=1).cpu() for part in parts]
        nothing = torch.empty(0, width + separable.outputs, dtype=torch.float64)
        rows = separable.gather(torch.cat([nothing, *own]))
        parts = [Rows(None, rows[:, :width], rows[:, width:])]
    return (_by_triangle if plan.triangle else _by_gram)(separable, parts, reduce_here=not plan.gather)


def _by_gram(separable: Separable, parts: Iterable[Rows], reduce_here: bool) -> GramBatch:
    """One sum of [upper triangle of Z Z^T | S | |R|^2]."""
    width, outputs = separable.width, separable.outputs
    gram, cross = (torch.zeros(rows, width, dtype=torch.float64) for rows in (width, outputs))
    square = 0.0
    for columns, design, residual in parts:
        own, towards = (design.T @ design).cpu(), (residual.T @ design).cpu()
        if columns is None:
            gram, cross = gram + own, cross + towards
        else:
            gram[columns[:, None], columns] += own
            cross[:, columns] += towards
        square += float(residual.square().sum())
    if separable.alone or not reduce_here:
        return GramBatch(gram, cross, square)
    packed = tsqr.pack(tsqr.Triangle(gram, cross.T, square))
    upper, right, square = tsqr.unpack(separable.sum(packed), width, outputs)
    return GramBatch(upper + upper.triu(1).T, right.T, square)


def _by_triangle(separable: Separable, parts: Iterable[Rows], reduce_here: bool) -> TriangleBatch:
    """Triangles of this rank's parts, combined with those of the others."""
    width, outputs = separable.width, separable.outputs
    none = torch.empty(0, width, dtype=torch.float64), torch.empty(0, outputs, dtype=torch.float64)
    state = reduce(tsqr.combine, (_leaf(part, width) for part in parts), tsqr.leaf(*none))
    if reduce_here and not separable.alone:

        def both(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            return tsqr.pack(tsqr.combine(*(tsqr.unpack(packed, width, outputs) for packed in (first, second))))

        state = tsqr.unpack(separable.combine(tsqr.pack(state), both), width, outputs)
    return TriangleBatch(state)


def _leaf(part: Rows, width: int) -> tsqr.Triangle:
    """The triangle of a part in all m columns."""
    state = tsqr.leaf(part.design, part.residual)
    factor, right = state.factor.cpu(), state.right.cpu()
    return tsqr.leaf(_full(Rows(part.columns, factor, right), width), right)._replace(tail=state.tail)


def _full(part: Rows, width: int) -> torch.Tensor:
    """The design in all m columns."""
    if part.columns is None:
        return part.design
    full = part.design.new_zeros(len(part.design), width)
    full[:, part.columns] = part.design
    return full


def _finite(first: torch.Tensor, second: torch.Tensor, number: float) -> bool:
    return bool(first.isfinite().all()) and bool(second.isfinite().all()) and abs(number) < torch.inf
