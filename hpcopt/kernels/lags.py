"""Sums over the inputs of a transposed convolution in C, from which its least squares follow without rows.

Shapes: b samples, c channels of the inputs, height and width of these with the zeros around them; m columns of W (t, m)
without that of the bias.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple, TypeAlias

import torch

from hpcopt.kernels.compiled import compiled_library
from hpcopt.kernels.launch import check_arguments

Table: TypeAlias = "ctypes.Array[ctypes.c_int64]"


def table_of(numbers: Sequence[int]) -> Table:
    """Numbers as C takes them: to make that of hundreds takes longer than many a call."""
    return (ctypes.c_int64 * len(numbers))(*numbers)


NOTHING = table_of([])


class Residuals(NamedTuple):
    """What weights leave of the targets.

    Attributes:
        image: W Z - C in the shape of the targets.
        square: its squares, summed, (1,).
        cross: the products with what is seen, (t, m); None where nobody asked for them.
        totals: the sum over each block's positions, (blocks, t), likewise.
    """

    image: torch.Tensor
    square: torch.Tensor
    cross: torch.Tensor | None
    totals: torch.Tensor | None


class CompiledLags:
    """The sums for ``inputs`` (b, height, width, c), contiguous and in float64 on the processor.

    Args:
        library: the compiled functions.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._inputs, self._sums, self._grams = library.lag_inputs, library.lag_sums, library.lag_grams
        self._residuals = library.lag_residuals

    def inputs(self, features: torch.Tensor, down: tuple[int, int], across: tuple[int, int]) -> torch.Tensor:
        """``features`` (b, c, height, width), in float32 or float64, as inputs: channels last, between zeros.

        Args:
            features: contiguous, on the processor.
            down: zeros above and below.
            across: zeros left and right.
        """
        check_arguments(features.dtype, torch.device("cpu"), features)
        samples, channels, height, width = features.shape
        shape = samples, down[0] + height + down[1], across[0] + width + across[1], channels
        inputs = torch.empty(shape, dtype=torch.float64)
        given = [None, features] if features.dtype == torch.float64 else [features, None]
        _call(self._inputs, [*given, inputs], [samples, height, width, *down, *across, channels], NOTHING)
        return inputs

    def sums(
        self, inputs: torch.Tensor, lags: Sequence[tuple[int, int]], down: Sequence[int], across: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """For each lag and piece the sum of x y^T over its positions, y that far from x, and for each piece that of x.

        They are (lags, pieces, c, c) and (pieces, c).

        Args:
            inputs: see above.
            lags: how far down and across.
            down: where the pieces begin, and the end of the last.
            across: likewise.
        """
        check_arguments(torch.float64, torch.device("cpu"), inputs)
        samples, sample, line, channels = _strides(inputs)
        far = [top * line + left * channels for top, left in lags]
        pieces = len(down) - 1, len(across) - 1
        sums = inputs.new_zeros(len(lags), pieces[0] * pieces[1], channels, channels)
        single, sizes = inputs.new_zeros(sums.shape[1:3]), [samples, sample, line, len(lags), *pieces, channels]
        _call(self._sums, [inputs, sums, single], sizes, table_of([*far, *down, *across]))
        return sums, single

    def grams(
        self,
        sums: tuple[torch.Tensor, torch.Tensor],
        samples: int,
        table: Table,
        widths: Sequence[int],
        last: int,
    ) -> list[torch.Tensor]:
        """Z Z^T of every block.

        Args:
            sums: what ``sums`` gave.
            samples: b.
            table: for each block its taps, positions and pairs of taps; of every pair the taps, of how many lags and
                pieces the sums are taken, and which; and of every tap, how many pieces it sees, and which.
            widths: of the blocks, without the column of the bias.
            last: 1 where there is one, else 0.
        """
        grams = [torch.empty(width + last, width + last, dtype=torch.float64) for width in widths]
        _call(self._grams, [*sums, *grams], [len(grams), samples, last, sums[1].shape[1]], table)
        return grams

    def residuals(
        self,
        inputs: torch.Tensor,
        weights: torch.Tensor,
        bias: torch.Tensor,
        targets: torch.Tensor,
        table: Table,
        blocks: int,
        *,
        products: bool,
    ) -> Residuals:
        """What W (t, m) and a bias (t,) leave of ``targets`` (b, t, ...).

        Args:
            inputs: see above.
            weights: contiguous, in float64.
            bias: likewise.
            targets: likewise.
            table: for each block its rows and columns, the first output and the steps to the next one down and across,
                how many taps, and for each where the first output sees it among the inputs, and its first column of W.
            blocks: how many.
            products: whether those with what is seen are wanted.
        """
        given = inputs, weights, bias, targets
        check_arguments(torch.float64, torch.device("cpu"), *given)
        samples, sample, line, channels = _strides(inputs)
        image, square = torch.empty_like(targets), inputs.new_zeros(1)
        cross, totals = None, None
        if products:
            cross, totals = torch.zeros_like(weights), inputs.new_zeros(blocks, weights.shape[0])
        outputs, columns = weights.shape
        sizes = [samples, sample, line, outputs, columns, targets[0, 0].numel() if samples else 0, blocks, channels]
        _call(self._residuals, [inputs, weights, targets, image, square, cross, totals, bias], sizes, table)
        return Residuals(image, square, cross, totals)


def _strides(inputs: torch.Tensor) -> tuple[int, int, int, int]:
    """Samples, numbers of a sample and of a row of it, and channels."""
    samples, height, width, channels = inputs.shape
    return samples, height * width * channels, width * channels, channels


def _call(
    function: ctypes._NamedFuncPointer,
    arrays: Sequence[torch.Tensor | None],
    sizes: Sequence[int],
    table: Table,
) -> None:
    addresses = [None if each is None else each.data_ptr() for each in arrays]
    function((ctypes.c_void_p * len(arrays))(*addresses), table_of(sizes), table)


@cache
def compiled_lags() -> CompiledLags | None:
    """The compiled sums, if there are any."""
    library = compiled_library()
    return None if isinstance(library, str) else CompiledLags(library)
