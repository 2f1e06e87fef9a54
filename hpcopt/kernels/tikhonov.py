"""A whole step of sampled Tikhonov without a window in C: as many small calls as in numpy take longer.

Shapes: n rows, m columns of the design, t outputs, k trials (``hpcopt.linalg.sampled_tikhonov``).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TypeAlias

import torch

from hpcopt.kernels.compiled import compiled_library
from hpcopt.kernels.launch import check_arguments

MOST_ROWS = 16
"""Above it LAPACK's singular values take less time than rotations of pairs of rows."""

MOST_COLUMNS = 512
"""Above it a matrix does not fit in a nearby cache, and LAPACK's eigenvectors by blocks take less time."""

TOGETHER = 8
"""Trials of one operation; LANES of ``arrow.c``."""

Columns: TypeAlias = tuple[tuple[int, ...], ...]
"""Columns of W of each block."""


class CompiledStep:
    """A step in one call.

    Args:
        library: the compiled functions.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._function = library.tikhonov_few_rows

    def __call__(
        self,
        rows: torch.Tensor,
        right: torch.Tensor,
        weights: torch.Tensor,
        trials: torch.Tensor,
        numbers: Sequence[float],
        scale: float = 0.0,
    ) -> torch.Tensor:
        """W after the step, row by row, and Lambda, the least and the largest sigma^2, and |R|^2: (t m + 4,).

        What is not finite makes some of these so.

        Args:
            rows: F (n, m), n at most m; with ``scale`` features (n, m), or without the column of the bias.
            right: R^T (n, t); with ``scale`` targets.
            weights: W (t, m).
            trials: lambda, (k,).
            numbers: |R|^2 beside R^T; Lambda before; N t; the least part of it that counts as free; the part by which
                criteria must differ; and lambda where they do not.
            scale: what features and targets are multiplied by.
        """
        (n, width), (t, m), k = rows.shape, weights.shape, trials.shape[0]
        found = torch.empty(t * m + 4 + n * (m + 2 * t + 4), dtype=torch.float64)
        given = rows.contiguous(), right.contiguous(), weights, trials
        check_arguments(torch.float64, found.device, *given)
        out = found.data_ptr()
        addresses = *(each.data_ptr() for each in given), out, out + 8 * (t * m + 4)
        sizes = (ctypes.c_int64 * 5)(n, m, t, k, width if scale else 0)
        self._function((ctypes.c_void_p * 6)(*addresses), sizes, (ctypes.c_double * 7)(*numbers, scale))
        return found[: t * m + 4]


class CompiledResiduals:
    """Loss and gradient of a linear layer in one call.

    Args:
        library: the compiled functions.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._function = library.few_residuals

    def __call__(
        self, features: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Half the sum of the squared residuals, (), and ``scale`` times its gradient in the features.

        Args:
            features: (n, ..., width), contiguous, in float64 on the processor.
            targets: t numbers for each row of these, likewise.
            weights: W (t, width), or with the column of the bias, likewise.
            scale: see above.
        """
        width, (t, m) = features.shape[-1], weights.shape
        loss, gradient = torch.empty((), dtype=torch.float64), torch.empty_like(features, requires_grad=False)
        given = features, targets, weights, gradient, loss
        check_arguments(torch.float64, loss.device, *given)
        sizes = (ctypes.c_int64 * 4)(features.numel() // width, width, t, m)
        addresses = (ctypes.c_void_p * 5)(*(each.data_ptr() for each in given))
        self._function(addresses, sizes, (ctypes.c_double * 1)(scale))
        return loss, gradient


class CompiledBlocks:
    """A step in one call from the Gram matrices of blocks that meet in the bias.

    Args:
        library: the compiled functions.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._function = library.tikhonov_blocks

    def __call__(
        self,
        states: Sequence[tuple[torch.Tensor, torch.Tensor]],
        weights: torch.Tensor,
        columns: Columns,
        trials: torch.Tensor,
        numbers: Sequence[float],
    ) -> torch.Tensor:
        """W after the step and four numbers, as ``CompiledStep``, of sigma^2 bounds.

        Args:
            states: of each block Z Z^T and Z R^T, the bias last.
            weights: W (t, m), the bias last.
            columns: of each block, without that of the bias.
            trials: lambda, and behind them that where criteria do not differ, (k + 1,).
            numbers: |R|^2; Lambda before; N t; the least part of it that counts as free; and the part by which criteria
                must differ.
        """
        t, m = weights.shape
        sizes, held = _sizes(columns, t, m, trials.shape[0])
        found = torch.empty(t * m + 4 + held, dtype=torch.float64)
        given = [weights, trials, *(each.contiguous() for state in states for each in state)]
        check_arguments(torch.float64, found.device, *given)
        out = found.data_ptr()
        first, second, *others = (each.data_ptr() for each in given)
        addresses = first, second, out, out + 8 * (t * m + 4), *others
        self._function((ctypes.c_void_p * len(addresses))(*addresses), sizes, (ctypes.c_double * 5)(*numbers))
        return found[: t * m + 4]


@lru_cache(maxsize=16)
def _sizes(columns: Columns, t: int, m: int, trials: int) -> tuple[ctypes.Array[ctypes.c_int64], int]:
    """What ``CompiledBlocks`` tells of sizes and columns, and the room that it needs, the same in many steps."""
    widths, every = [len(own) for own in columns], -(-trials // TOGETHER) * TOGETHER
    held = (5 + TOGETHER) * len(widths) + TOGETHER + 2 * t + every * (5 + 6 * t)
    held += sum(n * (n + 3 + 2 * t) for n in widths) + max(every, 56) * (1 + 3 * max(widths))
    sizes = len(widths), t, m, trials - 1, *widths, *(number for own in columns for number in own)
    return (ctypes.c_int64 * len(sizes))(*sizes), held


@cache
def compiled_blocks() -> CompiledBlocks | None:
    """The compiled step from Gram matrices, if there is one."""
    library = compiled_library()
    return None if isinstance(library, str) else CompiledBlocks(library)


@cache
def compiled_step() -> CompiledStep | None:
    """The compiled step, if there is one."""
    library = compiled_library()
    return None if isinstance(library, str) else CompiledStep(library)


@cache
def compiled_residuals() -> CompiledResiduals | None:
    """The compiled loss and gradient of a linear layer, if there are any."""
    library = compiled_library()
    return None if isinstance(library, str) else CompiledResiduals(library)
