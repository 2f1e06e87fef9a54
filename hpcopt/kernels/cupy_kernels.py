"""The products in CUDA kernels of our own where they save passes over memory; matrix products are torch's.

What they save: with a rank's own block M is read once instead of twice, and q and B q never go to memory and back in
between; the derivative of the activation and the factors before the output layer need no array in between. M may be
stored in bfloat16, which halves what most products wait for. The matrix products (affine, pull_back, add_gradient) are
torch's, and so the vendor's library's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hpcopt.kernels.interface import ACTIVATIONS
from hpcopt.kernels.launch import Launcher, check_arguments
from hpcopt.kernels.torch_kernels import TorchKernels

LAYERS = 4
"""Layers of a rank in one launch of ``bend``; with more it is done by parts."""

THREADS = 256
ROW_THREADS = 128


class CupyKernels(TorchKernels):
    """``hpcopt.kernels.interface.Kernels`` for torch tensors on a CUDA device.

    Args:
        launch: starts the kernels.
    """

    name = "CuPy"

    def __init__(self, launch: Launcher) -> None:
        self._launch = launch

    def scale_by_slope(self, activation: str, activations: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Multiply (b, v) or (b, C, v) in place by the derivative of the activation."""
        if not target.is_contiguous():
            return super().scale_by_slope(activation, activations, target)
        activations = activations.contiguous()
        check_arguments(activations.dtype, activations.device, activations, target)
        samples, width = activations.shape
        rows = target.numel() // max(width, 1)
        kind, group = ACTIVATIONS.index(activation), rows // max(samples, 1)
        self._launch("scale_by_slope", target.dtype, rows, ROW_THREADS, activations, target, kind, max(group, 1), width)
        return target

    def last_factors(self, weights: torch.Tensor, activation: str, activations: torch.Tensor) -> torch.Tensor:
        """M[i, c, j] = W[j, c] sigma'_j, (b, C, u)."""
        weights, activations = weights.contiguous(), activations.contiguous()
        check_arguments(weights.dtype, weights.device, weights, activations)
        (width, outputs), samples = weights.shape, len(activations)
        factors = weights.new_empty(samples, outputs, width)
        kind = ACTIVATIONS.index(activation)
        given = (weights, activations, factors, kind, outputs, width)
        self._launch("last_factors", weights.dtype, samples * outputs if width else 0, ROW_THREADS, *given)
        return factors

    def add_outputs(self, factors: torch.Tensor, units: torch.Tensor, out: torch.Tensor) -> None:
        """q[i, c] += sum_j M[i, c, j] t[i, j]."""
        if not out.is_contiguous():
            return super().add_outputs(factors, units, out)
        factors, units = factors.contiguous(), units.contiguous()
        half = self._check(factors, units, out)
        samples, outputs, width = factors.shape
        self._launch("add_outputs", out.dtype, samples, THREADS, factors, units, out, outputs, width, half=half)

    def units(self, factors: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        """r[i, j] = sum_c M[i, c, j] y[i, c]."""
        factors, outputs = factors.contiguous(), outputs.contiguous()
        half = self._check(factors, outputs)
        samples, count, width = factors.shape
        units = outputs.new_empty(samples, width)
        given = (factors, outputs, units, count, width)
        self._launch("units", outputs.dtype, samples, ROW_THREADS, *given, half=half)
        return units

    def bend(
        self,
        factors: Sequence[torch.Tensor],
        units: Sequence[torch.Tensor],
        outputs: torch.Tensor,
        probabilities: torch.Tensor | None,
        scale: float,
    ) -> list[torch.Tensor]:
        """All of it in one launch, in place, with M read once where it fits into shared memory."""
        if len(factors) > LAYERS or not outputs.is_contiguous():
            return super().bend(factors, units, outputs, probabilities, scale)
        factors, units = [m.contiguous() for m in factors], [t.contiguous() for t in units]
        probabilities = None if probabilities is None else probabilities.contiguous()
        check_arguments(outputs.dtype, outputs.device, *([] if probabilities is None else [probabilities]))
        half = any([self._check(m, t, outputs) for m, t in zip(factors, units, strict=True)])
        nothing = [None] * (LAYERS - len(factors))
        widths = [t.shape[1] for t in units]
        count = outputs.shape[1]
        size = outputs.element_size() * count
        whole = size + count * sum(m.element_size() * width for m, width in zip(factors, widths, strict=True))
        keep = whole <= self._launch.shared_limit
        given = (*factors, *nothing, *units, *nothing, *widths, *[0] * len(nothing), probabilities, outputs, count)
        self._launch(
            "bent", outputs.dtype, len(outputs), THREADS, *given, float(scale), int(keep),
            shared=whole if keep else size, half=half,
        )  # fmt: skip
        return list(units)

    def _check(self, factors: torch.Tensor, *others: torch.Tensor) -> bool:
        """Whether the factors are stored in bfloat16; refuses what does not fit together."""
        half = factors.dtype == torch.bfloat16
        real = others[0].dtype
        check_arguments(factors.dtype if half else real, others[0].device, factors)
        check_arguments(real, others[0].device, *others)
        return half
