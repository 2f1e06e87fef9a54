"""A whole step of sampled Tikhonov in C, for a batch of few rows: as many small calls as in numpy take longer.

Shapes: n rows, m columns of the design, t outputs, k trials (``hpcopt.linalg.sampled_tikhonov``).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import torch

from hpcopt.kernels.compiled import compiled_library
from hpcopt.kernels.launch import check_arguments

MOST_ROWS = 16
"""Above it LAPACK's singular values take less time than rotations of pairs of rows."""


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


@cache
def compiled_step() -> CompiledStep | None:
    """The compiled step, if there is one."""
    library = compiled_library()
    return None if isinstance(library, str) else CompiledStep(library)
