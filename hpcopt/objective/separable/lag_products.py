"""The normal equations of a transposed convolution, without its rows.

A row of the design holds what some taps see at a position. What two taps see, summed over all positions, is a sum over
the inputs of x y^T, with y as far from x as one tap from the other: the Gram matrix is known by few such lags, each
shared by many pairs of taps, in all blocks. Pairs differ in the positions at the edges alone. So the inputs are cut
into pieces, rectangles which a pair takes whole or not at all, and for each lag the sum over every piece is taken once.

Shapes: b samples, c channels of the inputs, t outputs at a position, m columns of W without that of the bias; k taps of
a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement, pairwise, product
from typing import NamedTuple

import numpy as np
import torch

from hpcopt.kernels.lags import CompiledLags, table_of
from hpcopt.objective.separable.protocol import Normal
from hpcopt.objective.separable.taps import Axis, Strip


class Pair(NamedTuple):
    """Two taps of a block, the second not before the first as inputs are ordered.

    Attributes:
        first, second: their numbers in the block.
        lag: how far down and across the inputs of the second are from those of the first.
        down, across: begin and end of the inputs that the first one sees.
    """

    first: int
    second: int
    lag: tuple[int, int]
    down: tuple[int, int]
    across: tuple[int, int]


class LagProducts:
    """What is summed for inputs of one size.

    Args:
        compiled: makes the sums.
        axes: those of the convolution, down and across.
        size: height and width of the inputs.
        channels: c.
    """

    def __init__(self, compiled: CompiledLags, axes: Sequence[Axis], size: tuple[int, int], channels: int) -> None:
        self._compiled, self._channels, self._size = compiled, channels, size
        strips = [[axis.strip(r, n) for r in range(axis.stride)] for axis, n in zip(axes, size, strict=True)]
        self._blocks = list(product(strips[0], strips[1]))
        by_block = [_pairs(*block, size) for block in self._blocks]
        every = [pair for pairs in by_block for pair in pairs]
        self._lags = sorted({pair.lag for pair in every})
        ranges = [pair.down for pair in every], [pair.across for pair in every]
        self._cuts = [_cuts(own, n) for own, n in zip(ranges, size, strict=True)]
        self._margins = [_margins(own, n) for own, n in zip(strips, size, strict=True)]
        self._edges = [[cut + margin[0] for cut in own] for own, margin in zip(self._cuts, self._margins, strict=True)]
        self._table = table_of(self._outputs(axes))
        self._pieces = (len(self._cuts[0]) - 1) * (len(self._cuts[1]) - 1)
        self._added = sum(len(self._inside(pair)) for pair in every)
        self._grams = table_of(
            [number for both in zip(self._blocks, by_block, strict=True) for number in self._taken(*both)]
        )

    def pays(self, samples: float) -> bool:
        """Whether a pair of taps is put together of fewer sums than there are positions."""
        return len(self._lags) * self._pieces < samples * self._size[0] * self._size[1]

    def operations(self, samples: float, outputs: int) -> float:
        """Those of ``normal``: products of every lag, sums of them for every pair, and twice what all outputs see."""
        products = 2 * samples * len(self._lags) * self._size[0] * self._size[1] + self._added
        seen = sum(
            down.positions * across.positions * len(own)
            for (down, across), own in zip(self._blocks, self._columns, strict=True)
        )
        return float(self._channels**2 * products) + 4.0 * samples * seen * outputs

    def inputs(self, features: torch.Tensor) -> torch.Tensor:
        """(b, c, height, width) as float64, channels last, with the zeros around them that taps may see."""
        plain = features if features.dtype in (torch.float32, torch.float64) else features.to(torch.float64)
        return self._compiled.inputs(plain.contiguous(), *self._margins)

    def residuals(
        self, inputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor, float]:
        """W Z - C (b, t, outputs) for W (t, m), a bias (t,) and ``targets`` in float64, and its square."""
        found = self._compiled.residuals(inputs, weights, bias, targets, self._table, len(self._blocks), products=False)
        return found.image, float(found.square)

    def normal(
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        bias: torch.Tensor,
        last: int,
        scale: float,
    ) -> list[Normal]:
        """Z Z^T, Z R^T and |R|^2 of each block, Z and R times ``scale``.

        Args:
            inputs: as ``inputs`` makes them.
            targets: (b, t, outputs), in float64.
            weights: W (t, m).
            bias: (t,).
            last: 1 where there is a column of the bias, else 0.
            scale: see above.
        """
        square = scale * scale
        found = self._compiled.residuals(inputs, weights, bias, targets, self._table, len(self._blocks), products=True)
        sums, widths = self._compiled.sums(inputs, self._lags, *self._edges), list(map(len, self._columns))
        grams = self._compiled.grams(sums, len(inputs), self._grams, widths, last)
        assert found.cross is not None
        assert found.totals is not None
        cross, totals, states = square * found.cross.numpy(), square * found.totals.numpy(), []
        tail = square * float(found.square)
        for number, (gram, columns) in enumerate(zip(grams, self._columns, strict=True)):
            right = np.concatenate([cross[:, columns].T, totals[number : number + 1][:last]])
            states.append(Normal(gram.mul_(square), torch.from_numpy(right), 0.0 if number else tail))
        return states

    def _taken(self, block: tuple[Strip, Strip], pairs: Sequence[Pair]) -> Iterator[int]:
        """What ``CompiledLags.grams`` needs to know of a block."""
        yield from (len(block[0].starts) * len(block[1].starts), block[0].positions * block[1].positions, len(pairs))
        for pair in pairs:
            pieces, lag = self._inside(pair), self._lags.index(pair.lag)
            yield from (pair.first, pair.second, len(pieces), *(lag * self._pieces + piece for piece in pieces))
        for pair in sorted(pairs):
            if pair.first == pair.second:
                pieces = self._inside(pair)
                yield from (len(pieces), *pieces)

    def _inside(self, pair: Pair) -> list[int]:
        """Numbers of the pieces that a pair takes, down and across in one row."""
        rows, columns = (
            [low <= start and stop <= high for start, stop in pairwise(cuts)]
            for (low, high), cuts in zip((pair.down, pair.across), self._cuts, strict=True)
        )
        return [number for number, both in enumerate(product(rows, columns)) if all(both)]

    def _outputs(self, axes: Sequence[Axis]) -> list[int]:
        """What ``CompiledLags.residuals`` needs to know of every block; its columns of W are noted on the way."""
        (above, _), (left, right) = self._margins
        width, kernel, steps = axes[1].outputs(self._size[1]), axes[1].kernel, [axis.stride for axis in axes]
        line, table, self._columns = left + self._size[1] + right, [], []
        for down, across in self._blocks:
            columns = [(a * kernel + b) * self._channels for a, b in product(down.taps, across.taps)]
            starts = [((top + above) * line + start + left) * self._channels for top, start in _starts(down, across)]
            first = down.first * width + across.first
            table += [down.positions, across.positions, first, steps[0] * width, steps[1], len(columns)]
            table += [number for both in zip(starts, columns, strict=True) for number in both]
            self._columns.append(np.add.outer(np.array(columns, dtype=int), np.arange(self._channels)).ravel())
        return table


def _starts(down: Strip, across: Strip) -> list[tuple[int, int]]:
    """For each tap of a block the input that its first output sees."""
    return list(product(down.starts, across.starts))


def _pairs(down: Strip, across: Strip, size: tuple[int, int]) -> list[Pair]:
    """All pairs of taps of a block, also of one with itself."""
    starts, pairs = _starts(down, across), []
    for one, other in combinations_with_replacement(range(len(starts)), 2):
        first, second = (one, other) if starts[one] <= starts[other] else (other, one)
        (top, left), (bottom, right) = starts[first], starts[second]
        ranges = _clipped(top, down.positions, size[0]), _clipped(left, across.positions, size[1])
        pairs.append(Pair(first, second, (bottom - top, right - left), *ranges))
    return pairs


def _clipped(start: int, positions: int, length: int) -> tuple[int, int]:
    """Begin and end of those inputs that there are."""
    return min(max(start, 0), length), min(max(start + positions, 0), length)


def _cuts(ranges: list[tuple[int, int]], length: int) -> list[int]:
    """Where the pieces of an axis begin, and its end."""
    return sorted({0, length, *(edge for both in ranges for edge in both)})


def _margins(strips: Sequence[Strip], length: int) -> tuple[int, int]:
    """Zeros before and behind the inputs of an axis that some tap sees, or a lag leads to."""
    starts = [start for strip in strips for start in strip.starts]
    reach = max((max(strip.starts) - min(strip.starts) for strip in strips if strip.starts), default=0)
    behind = max([0, *(start + strip.positions - length for strip in strips for start in strip.starts)])
    return max([reach, *(-start for start in starts)]), max(reach, behind)
