"""The design Z^T of a linear layer, dense or a convolution: which inputs a row of outputs sees, in blocks of columns.

Outputs are W Z: a row of Z^T belongs to a sample and a position of its outputs. In a transposed convolution with
stride s, output i of an axis sees the taps a for which i + padding - dilation a is a multiple of s, and at them the
inputs (i + padding - dilation a) / s. Taps of different remainders never meet in a row. So the columns fall into s^2
blocks, each with rows of its own, and the Gram matrix of two blocks is 0. What one block sees at a position, another
sees by other taps at a neighbouring output; such rows are made once for both.

Shapes: b samples, c channels of the inputs, t outputs at a position, m columns, of the bias none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple, Protocol

import torch
from torch import nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

from hpcopt.errors import UsageError
from hpcopt.kernels.lags import compiled_lags
from hpcopt.objective.curvature.factored_layers import PATCH_NUMBERS, FactoredLayer, is_plain, padding_of
from hpcopt.objective.separable.lag_products import LagProducts
from hpcopt.objective.separable.protocol import Normal
from hpcopt.objective.separable.taps import Axis, Segment


class Seen(NamedTuple):
    """Rows of the design, and of which outputs they are.

    Attributes:
        design: (rows, columns of each of the blocks, and of the bias).
        blocks: numbers of blocks that have these rows, each with other columns of W.
        targets: what is wanted of the outputs there, of the first block, then of the next, (rows, t times the blocks).
    """

    design: torch.Tensor
    blocks: tuple[int, ...]
    targets: torch.Tensor


class Design(Protocol):
    """How a layer sees its inputs.

    Attributes:
        width: m.
        outputs: t.
        blocks: the columns of each block, int64.
    """

    width: int
    outputs: int
    blocks: list[torch.Tensor]

    def ordered(self, weight: torch.Tensor) -> torch.Tensor:
        """The layer's weight (t, ...) with its axes in the order of the columns of W, a view."""
        ...

    def weight(self, matrix: torch.Tensor) -> torch.Tensor:
        """W (t, m) as the layer's weight."""
        ...

    def outputs_of(self, features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """What the layer would put out with other weights."""
        ...

    def pulled_back(self, cotangent: torch.Tensor, weight: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """What a cotangent of these outputs is as one of ``features``."""
        ...

    def residuals(
        self, features: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, float] | None:
        """W Z - C, float64, in the shape of the outputs, and its square, where that takes less than ``outputs_of``."""
        ...

    def normal(
        self, features: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, scale: float
    ) -> list[Normal] | None:
        """The normal equations of all blocks where they are known without rows, Z and R times ``scale``.

        Args:
            features: the layer's inputs (b, ...).
            targets: (b, numbers that the layer puts out).
            weights: W (t, m), behind it the column of the bias, if there is one; float64.
            scale: see above.
        """
        ...

    def operations(self, samples: float, size: Sequence[int]) -> float | None:
        """Those of ``normal`` for so many inputs (...) of a size; None where rows are made instead."""
        ...

    def rows(self, features: torch.Tensor, targets: torch.Tensor, bias: Sequence[float]) -> Iterator[Seen]:
        """All rows for the layer's inputs (b, ...).

        Args:
            features: these inputs.
            targets: (b, numbers that the layer puts out).
            bias: what stands in the column of the bias; without one nothing.
        """
        ...


class OneBlock:
    """A linear layer, or a convolution, whose rows are patches: each sees all columns."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        self._shape, self._layer, self._channels_first = layer.weight.shape, layer, isinstance(layer, nn.Conv2d)
        self._factored = FactoredLayer(layer, 0, None)
        self.width, self.outputs = self._factored.width, self._factored.outputs
        self.blocks = [torch.arange(self.width)]

    def ordered(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as it is."""
        return weight

    def weight(self, matrix: torch.Tensor) -> torch.Tensor:
        """The same numbers."""
        return matrix.reshape(self._shape)

    def outputs_of(self, features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See ``Design``."""
        layer = self._layer
        if isinstance(layer, nn.Conv2d):
            return functional.conv2d(features, weight, bias, layer.stride, layer.padding, layer.dilation)
        return functional.linear(features, weight, bias)

    def pulled_back(self, cotangent: torch.Tensor, weight: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """See ``Design``."""
        if not isinstance(self._layer, nn.Conv2d):
            return cotangent @ weight
        layer, padding = self._layer, padding_of(self._layer) or (0, 0)
        pulled: torch.Tensor = conv2d_input(features.shape, weight, cotangent, layer.stride, padding, layer.dilation)
        return pulled

    def residuals(
        self, features: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, float] | None:
        """Never."""
        return None

    def normal(
        self, features: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, scale: float
    ) -> list[Normal] | None:
        """Never."""
        return None

    def operations(self, samples: float, size: Sequence[int]) -> None:
        """Rows are made."""

    def rows(self, features: torch.Tensor, targets: torch.Tensor, bias: Sequence[float]) -> Iterator[Seen]:
        """See ``Design``."""
        if self._channels_first:
            targets = targets.view(len(targets), self.outputs, -1).transpose(1, 2)
        wanted, first = targets.reshape(-1, self.outputs), 0
        for patches in self._factored.rows(features):
            design = patches
            for number in bias:
                design = functional.pad(patches, (0, 1), value=number)
            count = design.shape[0]
            yield Seen(design, (0,), wanted[first : first + count])
            first += count


class Known(NamedTuple):
    """All pairs of segments of both axes, and the zeros that they need before and behind the inputs of each axis."""

    below: tuple[int, int]
    right: tuple[int, int]
    pairs: list[tuple[Segment, Segment]]


class ParityBlocks:
    """A transposed convolution: a block for each pair of remainders of the two axes by the strides."""

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        inputs, self.outputs, *kernel = layer.weight.shape
        self._shape, self._layer = (*kernel, inputs), layer
        padding: tuple[int, ...] = layer.padding  # type: ignore[assignment]
        settings = (kernel, layer.stride, padding, layer.dilation, layer.output_padding)
        self._axes = [Axis(*numbers) for numbers in zip(*settings, strict=True)]
        self.width = inputs * kernel[0] * kernel[1]
        number = torch.arange(self.width).view(self._shape)
        taps = [[axis.taps(remainder) for remainder in range(axis.stride)] for axis in self._axes]
        self.blocks = [number[down[:, None], across].flatten() for down, across in product(*taps)]
        self._known: dict[tuple[int, int], Known] = {}
        self._sums: dict[tuple[int, int], LagProducts] = {}
        self._latest: tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]] | None = None

    def ordered(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight (inputs, t, kernel) as (t, kernel, inputs): in a row, runs of numbers are then copied."""
        return weight.permute(1, 2, 3, 0)

    def weight(self, matrix: torch.Tensor) -> torch.Tensor:
        """The same numbers, inputs first."""
        return matrix.reshape(self.outputs, *self._shape).permute(3, 0, 1, 2).contiguous()

    def outputs_of(self, features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See ``Design``."""
        layer, padding = self._layer, [axis.padding for axis in self._axes]
        settings = (layer.stride, padding, layer.output_padding, layer.groups, layer.dilation)
        return functional.conv_transpose2d(features, weight, bias, *settings)

    def pulled_back(self, cotangent: torch.Tensor, weight: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """See ``Design``."""
        layer, padding, (height, width) = self._layer, [axis.padding for axis in self._axes], features.shape[-2:]
        # Padding of the outputs may make for one more.
        pulled = functional.conv2d(cotangent, weight, None, layer.stride, padding, layer.dilation)
        return pulled[..., :height, :width]

    def residuals(
        self, features: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, float] | None:
        """See ``Design``."""
        if (lags := self._lags(features, targets)) is None:
            return None
        residual, square = lags.residuals(*self._given(lags, features, targets), *self._flat(weights))
        return residual.view(len(features), self.outputs, *self._made(features)), square

    def normal(
        self, features: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, scale: float
    ) -> list[Normal] | None:
        """See ``Design``."""
        if (lags := self._lags(features, targets)) is None:
            return None
        given, last = self._given(lags, features, targets), weights.shape[1] - self.width
        return lags.normal(*given, *self._flat(weights), last, scale)

    def operations(self, samples: float, size: Sequence[int]) -> float | None:
        """See ``Design``."""
        lags = self._lag_products(samples, *size[-2:])
        return None if lags is None else lags.operations(samples, self.outputs)

    def rows(self, features: torch.Tensor, targets: torch.Tensor, bias: Sequence[float]) -> Iterator[Seen]:
        """See ``Design``."""
        height, width = features.shape[-2:]
        targets = targets.view(len(targets), self.outputs, *self._made(features))
        step = max(1, PATCH_NUMBERS // max(1, self.width * height * width))
        below, right, pairs = self._segments(height, width)
        for some, wanted in zip(features.split(step), targets.split(step), strict=True):
            padded = functional.pad(some.movedim(1, -1), (0, 0, *right, *below))
            for down, across in pairs:
                yield self._seen(padded, wanted, (down, across), bias)

    def _seen(
        self, padded: torch.Tensor, wanted: torch.Tensor, pair: tuple[Segment, Segment], bias: Sequence[float]
    ) -> Seen:
        """The rows of all pairs of positions of two segments of ``padded`` (b, height, width, c)."""
        down, across = pair
        samples, channels = len(padded), padded.shape[-1]
        seen = len(down.starts) * len(across.starts) * channels
        design = padded.new_empty(samples, down.positions, across.positions, seen + len(bias))
        for number, (top, left) in enumerate(product(down.starts, across.starts)):
            own = design[..., number * channels : (number + 1) * channels]
            own.copy_(padded[:, top : top + down.positions, left : left + across.positions])
        for value in bias:
            design[..., seen] = value
        members = list(product(down.members, across.members))
        blocks = tuple(first * self._axes[1].stride + second for (first, _), (second, _) in members)
        targets = [wanted[:, :, i, j].permute(0, 2, 3, 1) for (_, i), (_, j) in members]
        return Seen(design.flatten(0, 2), blocks, torch.cat(targets, dim=-1).flatten(0, 2))

    def _made(self, features: torch.Tensor) -> list[int]:
        """Height and width of the outputs."""
        return [axis.outputs(n) for axis, n in zip(self._axes, features.shape[-2:], strict=True)]

    def _lags(self, features: torch.Tensor, targets: torch.Tensor) -> LagProducts | None:
        """The sums over these inputs, where they are compiled and take less than rows."""
        if features.is_cuda or not targets.is_floating_point():
            return None
        return self._lag_products(len(features), *features.shape[-2:])

    def _lag_products(self, samples: float, height: int, width: int) -> LagProducts | None:
        """Those over so many inputs of a size."""
        compiled = compiled_lags()
        if compiled is None or self.width * samples * height * width > PATCH_NUMBERS:
            return None
        if (height, width) not in self._sums:
            self._sums[height, width] = LagProducts(compiled, self._axes, (height, width), self._shape[-1])
        lags = self._sums[height, width]
        return lags if lags.pays(samples) else None

    def _given(
        self, lags: LagProducts, features: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets as ``LagProducts`` takes them: needed twice of one batch, and kept in between."""
        latest, self._latest = self._latest, None
        if latest is not None and latest[0] is features:
            return latest[1]
        image = targets.reshape(len(targets), self.outputs, -1).to(torch.float64)
        given = lags.inputs(features.detach()), image
        self._latest = features, given
        return given

    def _flat(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """W without the column of the bias, and that, zeros where there is none."""
        given = weights[:, : self.width].contiguous()
        return given, weights[:, -1].contiguous() if weights.shape[1] > self.width else weights.new_zeros(self.outputs)

    def _segments(self, height: int, width: int) -> Known:
        """Those of inputs of this size."""
        if (height, width) not in self._known:
            both = [list(axis.segments(length)) for axis, length in zip(self._axes, (height, width), strict=True)]
            (down, below), (across, right) = (_padded(own, n) for own, n in zip(both, (height, width), strict=True))
            self._known[height, width] = Known(below, right, list(product(down, across)))
        return self._known[height, width]


def _padded(segments: list[Segment], length: int) -> tuple[list[Segment], tuple[int, int]]:
    """The same segments where so many zeros stand before and behind the inputs that every tap sees some."""
    before = max([0, *(-start for segment in segments for start in segment.starts)])
    behind = max([0, *(start + segment.positions - length for segment in segments for start in segment.starts)])
    moved = [segment._replace(starts=[start + before for start in segment.starts]) for segment in segments]
    return moved, (before, behind)


def design_of(layer: nn.Module) -> Design | None:
    """The design of a linear layer; None for other layers.

    Raises:
        UsageError: a convolution whose outputs do not all see all channels, or that is padded by other than zeros.
    """
    if isinstance(layer, nn.ConvTranspose2d):
        _refuse_unless(layer.groups == 1, layer, f"groups = {layer.groups}")
        return ParityBlocks(layer)
    if isinstance(layer, nn.Conv2d):
        given = f"groups = {layer.groups}, padding_mode = {layer.padding_mode!r}, padding = {layer.padding!r}"
        _refuse_unless(is_plain(layer), layer, given)
    return OneBlock(layer) if isinstance(layer, (nn.Linear, nn.Conv2d)) else None


def _refuse_unless(fits: bool, layer: nn.Module, given: str) -> None:
    if not fits:
        raise UsageError(
            f"the model's last layer {layer} has {given}. A convolution can be solved for with groups = 1, padded by"
            ' zeros alike on both sides (padding_mode = "zeros"). Change that layer, or use another method.'
        )
