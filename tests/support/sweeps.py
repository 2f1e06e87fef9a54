"""Sweeps over long vectors against torch's in float64."""

from __future__ import annotations

import torch

from hpcopt.kernels.sweeps import Moments, Pair, Sweeps, TorchSweeps

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5}


def draw(dtype: torch.dtype, *shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers, the same in each precision but for rounding."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_sweeps_of_nlcg(
    sweeps: Sweeps, given: list[torch.Tensor], keeps: bool, pair: Pair | None, undo: float
) -> None:
    """One after the other on the vectors g, previous, h, d, kept, w and mean, all (n,), with sums and all vectors.

    Args:
        sweeps: those that are checked.
        given: the vectors, which change.
        keeps: whether z is kept, and a mean.
        pair: by which h learns.
        undo: the part that is taken back.
    """
    given[2].abs_()
    both = given, [each.double() if each.dtype != torch.float64 else each.clone() for each in given]
    sums = []
    for own, (g, previous, h, d, kept, w, mean) in zip((sweeps, TorchSweeps()), both, strict=True):
        parts = [*own.measure(g, previous, d, w), *own.products([(g, d), (w, w), (g, mean)])]
        parts += own.precondition(g, previous, h, d, kept if keeps else None, pair, 1e-3)
        own.move(kept if keeps else g, d, w, mean if keeps else None, beta=0.7, undo=undo, rate=0.1, leaves=0.2)
        sums.append(torch.stack([one.double() for part in parts for one in part]))
    assert_close(sums[:1], sums[1:], given[0].dtype)
    assert_close(*both, given[0].dtype)


def assert_sweep_of_adam(sweeps: Sweeps, given: list[torch.Tensor]) -> None:
    """On the vectors g, first moment, second moment and w, all (n,); g may be used up."""
    given[2].abs_()
    both = given, [each.double() if each.dtype != torch.float64 else each.clone() for each in given]
    for own, vectors in zip((sweeps, TorchSweeps()), both, strict=True):
        own.adam(*vectors, Moments((0.9, 0.99), (0.3, 0.2), 1e-3, 0.1, 0.98))
    assert_close(both[0][1:], both[1][1:], given[0].dtype)


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor], dtype: torch.dtype) -> None:
    """To the rounding of a precision."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
