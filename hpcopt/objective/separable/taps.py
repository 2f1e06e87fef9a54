"""An axis of a transposed convolution: which outputs see which inputs, by which taps of the kernel.

With stride s, output i sees the taps a for which i + padding - dilation a is a multiple of s, and at them the inputs
(i + padding - dilation a) / s; so an output's taps are those of its remainder by s.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch


class Strip(NamedTuple):
    """The outputs of one remainder on an axis: every so many from the first one on.

    Attributes:
        first: the first of them.
        positions: how many.
        taps: those that they see.
        starts: for each tap the input that the first one sees; there is none below 0 or behind the last one.
    """

    first: int
    positions: int
    taps: list[int]
    starts: list[int]


class Segment(NamedTuple):
    """Neighbouring positions of an axis whose outputs see the same inputs, by different taps.

    Attributes:
        positions: how many.
        starts: for each tap the input that the first position sees; there is none below 0 or behind the last one.
        members: for each remainder that has these positions, the outputs as a slice.
    """

    positions: int
    starts: list[int]
    members: list[tuple[int, slice]]


class Axis(NamedTuple):
    """One axis of a transposed convolution."""

    kernel: int
    stride: int
    padding: int
    dilation: int
    output_padding: int

    def outputs(self, length: int) -> int:
        """Outputs for so many inputs."""
        reach = self.dilation * (self.kernel - 1) + 1
        return (length - 1) * self.stride - 2 * self.padding + reach + self.output_padding

    def taps(self, remainder: int) -> torch.Tensor:
        """Those that outputs of this remainder see."""
        taps = torch.arange(self.kernel)
        return taps[(self.dilation * taps - remainder) % self.stride == 0]

    def strip(self, remainder: int, length: int) -> Strip:
        """The outputs of a remainder for so many inputs."""
        taps, first = self.taps(remainder), (remainder - self.padding) % self.stride
        shifts = (self.dilation * taps - remainder) // self.stride
        place = (first + self.padding - remainder) // self.stride
        positions = len(range(first, self.outputs(length), self.stride))
        return Strip(first, positions, taps.tolist(), (place - shifts).tolist())

    def segments(self, length: int) -> Iterator[Segment]:
        """All outputs for so many inputs."""
        alike: dict[tuple[int, ...], list[tuple[int, torch.Tensor, torch.Tensor]]] = {}
        for remainder in range(self.stride):
            shifts = (self.dilation * self.taps(remainder) - remainder) // self.stride
            outputs = torch.arange(self.outputs(length))
            outputs = outputs[(outputs + self.padding - remainder) % self.stride == 0]
            places = (outputs + self.padding - remainder) // self.stride
            if len(outputs):
                alike.setdefault(tuple(shifts.tolist()), []).append((remainder, outputs, places))
        for shared, members in alike.items():
            edges = {int(edge) for _, _, places in members for edge in (places[0], places[-1] + 1)}
            for start, stop in pairwise(sorted(edges)):
                there = [(r, outputs[(p >= start) & (p < stop)].tolist()) for r, outputs, p in members]
                slices = [(r, slice(at[0], at[-1] + 1, self.stride)) for r, at in there if at]
                yield Segment(stop - start, [start - shift for shift in shared], slices)
