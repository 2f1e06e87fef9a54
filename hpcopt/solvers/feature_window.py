"""How the features of a batch get known to all ranks, and in which form those of the latest batches are kept.

A batch is kept as its Gram matrix Z Z^T or, where that would lose too much, as a triangle F with F^T F = Z Z^T:
directions with sigma < sqrt(u) sigma_1 are lost in a Gram matrix, whose rounding is about u m sigma_1^2. Its rows reach
all ranks as one sum of Gram matrices, as a triangle by an operation that combines two of them, or as they are where
they are fewer numbers than either: N (m + t) instead of m (m + 1) / 2 + m t + 1. That they are is settled without
regard to the number of ranks, on which the steps then do not depend. Where the columns fall into blocks that have no
row in common, all this is done block by block: what lies between two blocks is 0 and never sent.

Shapes: m columns of the design with that of the bias, t outputs, N rows over all ranks, r batches, s the sum of the
squares of the widths of the blocks: m^2 where there is one. All in float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch

from hpcopt.kernels.tikhonov import MOST_COLUMNS, MOST_ROWS, compiled_blocks, compiled_step
from hpcopt.linalg import tsqr
from hpcopt.linalg.sampled_blocks import SampledBlocks
from hpcopt.linalg.sampled_tikhonov import FLAT, LEAST_FREEDOM, Array, Bounds, Sampled, SampledGram, SampledTriangle
from hpcopt.objective.separable.protocol import Features, Few, Rows, Separable

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


class KnownBatch(ABC):
    """The features of the new batch and their residual, as all ranks know them, block by block.

    Args:
        separable: the model.
        states: makes for each block its Gram matrix and Z R^T, or its rows, or a triangle, and what belongs to them of
            R^T; called when they are first asked for.
        few: the same before rows are made of them, where they are few and those of one rank.
    """

    def __init__(
        self, separable: Separable, states: Callable[[], Sequence[tsqr.Triangle]], few: Few | None = None
    ) -> None:
        self.columns, self.bias, self.few = separable.blocks, separable.bias, few
        self._separable, self._make = separable, states

    @cached_property
    def states(self) -> Sequence[tsqr.Triangle]:
        """What is known of each block."""
        return self._make()

    @property
    def kept(self) -> torch.Tensor:
        """What is kept of the features, (s,)."""
        missing = [state.factor.shape[1] - len(state.factor) for state in self.states]
        factors = [state.factor for state in self.states]
        squares = [torch.nn.functional.pad(f, (0, 0, 0, rows)) for f, rows in zip(factors, missing, strict=True)]
        return torch.cat([square.reshape(-1) for square in squares])

    @property
    def finite(self) -> bool:
        """Whether all numbers are; those of Z R^T are if those of Z and R are."""
        return math.isfinite(self.square) and all(np.isfinite(state.factor.numpy()).all() for state in self.states)

    @cached_property
    @abstractmethod
    def square(self) -> float:
        """|R|^2."""

    @abstractmethod
    def sampled(self, window: torch.Tensor, weights: Array, free: int) -> Sampled:
        """The batch in the basis of itself and of the batches (r, s) before it.

        Args:
            window: what was kept of these.
            weights: W (t, m).
            free: 1 if Lambda does not hold the bias, else 0.
        """

    def compiled_step(self, weights: torch.Tensor, bounds: Bounds, before: float, rows: int) -> torch.Tensor | None:
        """A step without a window and with lambda by cross-validation, where compiled functions make it in one call.

        Args:
            weights: W (t, m).
            bounds: of lambda.
            before: Lambda.
            rows: N.

        Returns:
            W row by row, Lambda, the squares of the window's least and largest singular value, and |R|^2.
        """
        return None


class GramBatch(KnownBatch):
    """By Gram matrices: Z Z^T, Z R^T and, as tails, |R|^2."""

    @cached_property
    def square(self) -> float:
        """|R|^2."""
        return sum(state.tail for state in self.states)

    def sampled(self, window: torch.Tensor, weights: Array, free: int) -> Sampled:
        """See ``KnownBatch``."""
        grams, cross = [state.factor.numpy() for state in self.states], [s.right.numpy().T for s in self.states]
        windows = grams
        if len(window):
            before = [kept.sum(0).numpy() for kept in _by_block(window, self.columns)]
            windows = [kept + gram for kept, gram in zip(before, grams, strict=True)]
        if len(grams) == 1:
            return SampledGram(windows[0], grams[0], cross[0], self.square, weights, free)
        columns = [own.numpy() for own in self.columns]
        return SampledBlocks(windows, grams, cross, self.square, weights, columns, self.bias, free)

    def compiled_step(self, weights: torch.Tensor, bounds: Bounds, before: float, rows: int) -> torch.Tensor | None:
        """See ``KnownBatch``: with a bias."""
        columns = self._separable.columns
        if (compiled := compiled_blocks()) is None or not self.bias or max(map(len, columns)) > MOST_COLUMNS:
            return None
        trials = torch.from_numpy(np.append(bounds.candidates(before), bounds.unmoved(before)))
        numbers = self.square, before, rows * weights.shape[0], LEAST_FREEDOM, FLAT
        return compiled([state[:2] for state in self.states], weights, columns, trials, numbers)


class TriangleBatch(KnownBatch):
    """By triangles or rows, of which the right-hand sides are R^T."""

    @cached_property
    def square(self) -> float:
        """|R|^2."""
        return sum(float(np.vdot(right := state.right.numpy(), right)) + state.tail for state in self.states)

    def sampled(self, window: torch.Tensor, weights: Array, free: int) -> Sampled:
        """See ``KnownBatch``."""
        width = weights.shape[1]
        if len(self.columns) == 1:
            before, (factor, right, tail) = window.view(-1, width), self.states[0]
        else:
            kept = zip(_by_block(window, self.columns), self.columns, strict=True)
            before = torch.cat([_in_all_columns(rows.flatten(0, 1), own, width) for rows, own in kept])
            factor, right, tail = self._whole(width)
        return SampledTriangle(before.numpy(), factor.numpy(), right.numpy(), tail, weights, free)

    def compiled_step(self, weights: torch.Tensor, bounds: Bounds, before: float, rows: int) -> torch.Tensor | None:
        """See ``KnownBatch``: of a few rows in one block."""
        if (compiled := compiled_step()) is None or len(self.columns) > 1:
            return None
        trials = torch.from_numpy(bounds.candidates(before))
        numbers = before, rows * weights.shape[0], LEAST_FREEDOM, FLAT, bounds.unmoved(before)
        if self.few is not None:
            return compiled(self.few.features, self.few.targets, weights, trials, (0.0, *numbers), self.few.scale)
        factor, right, tail = self.states[0]
        if factor.shape[0] > min(MOST_ROWS, factor.shape[1]):
            return None
        return compiled(factor, right, weights, trials, (tail, *numbers))

    def _whole(self, width: int) -> tsqr.Triangle:
        """One triangle of all blocks."""
        factors = [_in_all_columns(s.factor, own, width) for s, own in zip(self.states, self.columns, strict=True)]
        whole = tsqr.leaf(torch.cat(factors), torch.cat([state.right for state in self.states]))
        return whole._replace(tail=whole.tail + sum(state.tail for state in self.states))


def plan(form: str, separable: Separable, rows: int, loses: bool) -> Plan:
    """How a batch of ``rows`` N is made known.

    Rows that are gathered are kept, or become a triangle: there are few of them, and nothing is lost.

    Args:
        form: one of ``FORMS``.
        separable: the model and its ranks.
        rows: N.
        loses: whether a Gram matrix would lose too much.
    """
    if form != "auto":
        return Plan(form == "gather", form != "gram")
    gather = _gathers(separable.widths, separable.outputs, rows)
    return Plan(gather, gather or loses)


@lru_cache(maxsize=64)
def _gathers(widths: tuple[int, ...], outputs: int, rows: int) -> bool:
    """Whether rows are fewer numbers than what is made of them, in blocks of so many columns."""
    return rows * (max(widths) + outputs) < sum(tsqr.packed_size(width, outputs) for width in widths)


def loses(least: float, smallest: float, largest: float, width: int) -> bool:
    """Whether the Gram matrix of a window loses too much, where lambda is at least ``least``.

    Args:
        least: lower bound of lambda.
        smallest: square of the smallest singular value of the window's features.
        largest: square of the largest.
        width: m.
    """
    return max(least, smallest) < ROUNDINGS * torch.finfo(torch.float64).eps * width * largest


def kept_numbers(columns: Sequence[torch.Tensor]) -> int:
    """How many numbers are kept of a batch: s."""
    return sum(len(own) ** 2 for own in columns)


def converted(window: torch.Tensor, columns: Sequence[torch.Tensor], triangle: bool) -> torch.Tensor:
    """Gram matrices (r, s) as F with F^T F = Z Z^T, or such F as Gram matrices."""
    return torch.cat([_converted(kept, triangle).flatten(1) for kept in _by_block(window, columns)], dim=1)


def _converted(kept: torch.Tensor, triangle: bool) -> torch.Tensor:
    """One block (r, columns, columns)."""
    if not triangle:
        grams: torch.Tensor = kept.mT @ kept
        return grams
    squares, vectors = torch.linalg.eigh(kept)
    factors: torch.Tensor = squares.clamp_(min=0.0).sqrt_()[..., None] * vectors.mT
    return factors


def make_known(plan: Plan, separable: Separable, features: Features) -> KnownBatch:
    """The batch of which every rank has some rows, on all of them. *Collective*."""
    if not plan.triangle:
        states = [tsqr.Triangle(*state) for state in features.normal()]
        if not separable.alone:
            states = [_symmetric(state) for state in _unpack(separable.sum(_pack(states)), separable)]
        return GramBatch(separable, lambda: states)
    if plan.gather and separable.alone:
        few = features.few(min(MOST_ROWS, separable.width))
        return TriangleBatch(separable, lambda: _triangles(separable, features.rows(), triangular=False), few)
    parts = _gathered(separable, features.rows()) if plan.gather else features.rows()
    states = _triangles(separable, parts, triangular=not plan.gather and not separable.alone)
    if not (plan.gather or separable.alone):
        both = partial(_combined, separable)
        states = _unpack(separable.combine(_pack(states), both), separable)
    return TriangleBatch(separable, lambda: states)


def _gathered(separable: Separable, parts: Iterable[Rows]) -> list[Rows]:
    """All ranks' rows, a part for each block. *Collective*."""
    outputs = separable.outputs
    own = [[torch.empty(0, len(columns) + outputs, dtype=torch.float64)] for columns in separable.blocks]
    for blocks, design, residual in parts:
        for block, right in zip(blocks, residual.split(outputs, dim=1), strict=True):
            own[block].append(torch.cat([design, right], dim=1).cpu())
    everyone = separable.gather([torch.cat(rows) for rows in own])
    return [Rows((block,), rows[:, :-outputs], rows[:, -outputs:]) for block, rows in enumerate(everyone)]


def _triangles(separable: Separable, parts: Iterable[Rows], *, triangular: bool) -> list[tsqr.Triangle]:
    """For each block the triangle of this rank's rows, or, if it need not be triangular, a few rows as they are."""
    found: dict[int, tsqr.Triangle] = {}
    for numbers, design, residual in parts:
        rows, columns = design.shape
        few = rows <= columns and not triangular
        factor, right, tail = tsqr.Triangle(design, residual, 0.0) if few else tsqr.leaf(design, residual)
        rights = right.cpu().split(separable.outputs, dim=1) if len(numbers) > 1 else [right.cpu()]
        for block, own in zip(numbers, rights, strict=True):
            # What no W explains is known of all blocks together, and needed of all together.
            new = tsqr.Triangle(factor.cpu(), own, tail)
            found[block] = tsqr.combine(found[block], new) if block in found else new
            tail = 0.0
    blocks = enumerate(separable.blocks)
    return [found.get(block) or _nothing(len(own), separable.outputs) for block, own in blocks]


def _nothing(width: int, outputs: int) -> tsqr.Triangle:
    rows = torch.empty(0, width + outputs, dtype=torch.float64)
    return tsqr.leaf(rows[:, :width], rows[:, width:])


def _combined(separable: Separable, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The packed triangles of both sets of rows."""
    return _pack(map(tsqr.combine, _unpack(first, separable), _unpack(second, separable)))


def _symmetric(state: tsqr.Triangle) -> tsqr.Triangle:
    """A Gram matrix of which the upper triangle was sent."""
    return state._replace(factor=state.factor + state.factor.triu(1).T)


def _pack(states: Iterable[tsqr.Triangle]) -> torch.Tensor:
    """The states of all blocks as one vector."""
    return torch.cat([tsqr.pack(state) for state in states])


def _unpack(packed: torch.Tensor, separable: Separable) -> list[tsqr.Triangle]:
    """What ``_pack`` made one vector of."""
    widths, outputs = separable.widths, separable.outputs
    parts = packed.split([tsqr.packed_size(width, outputs) for width in widths])
    return [tsqr.unpack(part, width, outputs) for part, width in zip(parts, widths, strict=True)]


def _by_block(window: torch.Tensor, columns: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What is kept of r batches, (r, s), for each block (r, columns, columns)."""
    parts = window.split([len(own) ** 2 for own in columns], dim=1)
    return [part.reshape(len(window), len(own), len(own)) for part, own in zip(parts, columns, strict=True)]


def _in_all_columns(rows: torch.Tensor, columns: torch.Tensor, width: int) -> torch.Tensor:
    """Rows of a block with 0 in those of the m columns that it does not have."""
    full = rows.new_zeros(len(rows), width)
    full[:, columns] = rows
    return full
