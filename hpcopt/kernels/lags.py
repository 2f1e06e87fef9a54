"""Sums over the inputs of a transposed convolution in C, from which its least squares follow without rows.

Shapes: b samples, c channels of the inputs, height and width of these with the zeros around them; m columns of W (t, m)
without that of the bias.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch

from hpcopt.kernels.compiled import compiled_library
from hpcopt.kernels.launch import check_arguments


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
        self._sums, self._residuals = library.lag_sums, library.lag_residuals

    def sums(
        self, inputs: torch.Tensor, lags: Sequence[tuple[int, int]], down: Sequence[int], across: Sequence[int]
    ) -> torch.Tensor:
        """For each lag and piece the sum of x y^T over its positions, y that far from x, (lags, pieces, c, c).

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
        _call(self._sums, [inputs, sums], [samples, sample, line, len(lags), *pieces, channels], [*far, *down, *across])
        return sums

    def residuals(
        self,
        inputs: torch.Tensor,
        weights: torch.Tensor,
        bias: torch.Tensor,
        targets: torch.Tensor,
        table: Sequence[int],
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
    table: Sequence[int],
) -> None:
    addresses = [None if each is None else each.data_ptr() for each in arrays]
    function(
        (ctypes.c_void_p * len(arrays))(*addresses), (ctypes.c_int64 * len(sizes))(*sizes),
        (ctypes.c_int64 * len(table))(*table),
    )  # fmt: skip


@cache
def compiled_lags() -> CompiledLags | None:
    """The compiled sums, if there are any."""
    library = compiled_library()
    return None if isinstance(library, str) else CompiledLags(library)
