"""Blocks of a curvature matrix as Kronecker products, damped and inverted.

For a layer with weights V (o, a) the block A (x) G maps V to G V A, with A (a, a) and G (o, o) symmetric. After Martens
and Grosse 2015, "Optimizing neural networks with Kronecker-factored approximate curvature" (arXiv 1503.05671); letters
follow it.
"""

from __future__ import annotations

import math

import torch


def balance(inputs: torch.Tensor, outputs: torch.Tensor) -> float:
    """The ratio pi = sqrt((tr A / a) / (tr G / o)), section 6.3 of the paper; 1 where one of the traces is 0."""
    means = [float(factor.diagonal().mean(dtype=torch.float64)) for factor in (inputs, outputs)]
    if not all(mean > 0 and math.isfinite(mean) for mean in means):
        return 1.0
    return math.sqrt(means[0]) / math.sqrt(means[1])


def damped_inverses(
    inputs: torch.Tensor, outputs: torch.Tensor, damping: float
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(A + pi r I)^-1 and (G + r / pi I)^-1 with r^2 = ``damping``; None where one of them fails.

    The product of what is added is ``damping`` times the identity, whatever the scales of A and G.
    """
    root, pi = math.sqrt(damping), balance(inputs, outputs)
    first = shifted_inverse(inputs, pi * root)
    second = shifted_inverse(outputs, root / pi) if first is not None else None
    return None if first is None or second is None else (first, second)


def shifted_inverse(matrix: torch.Tensor, shift: float) -> torch.Tensor | None:
    """(M + shift I)^-1 by Cholesky, symmetric, in M's precision; None where M + shift I is not positive definite.

    What fails in float32 is tried in float64: rounding there makes a matrix of condition 1e7 indefinite.
    """
    for precision in dict.fromkeys((matrix.dtype, torch.float64)):
        damped = matrix.to(precision, copy=True)
        damped.diagonal().add_(shift)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed and bool(factor.isfinite().all()):
            inverse = torch.cholesky_inverse(factor).to(matrix.dtype)
            if bool(inverse.isfinite().all()):
                return inverse
    return None


def multiply(
    inputs: torch.Tensor,
    outputs: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    into: tuple[torch.Tensor, torch.Tensor | None],
) -> None:
    """Write G V A into a weight (o, a) and, where V's last column is a bias (o,), into a bias (o,)."""
    width = weight.shape[1]
    product = weight @ inputs[:width]
    if bias is not None:
        product.addr_(bias, inputs[width])
    if into[1] is None:
        torch.mm(outputs, product, out=into[0])
        return
    product = outputs @ product
    into[0].copy_(product[:, :width])
    into[1].copy_(product[:, width])
