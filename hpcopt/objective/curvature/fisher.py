"""Vectors at the outputs of a model whose second moments are the curvature of the loss there.

With J_i the Jacobian of sample i and H_i the Hessian of its loss in output space, the Gauss-Newton matrix is the mean
of J_i^T H_i J_i, and so the second moment of J_i^T e_i for random e_i with mean 0 and covariance H_i. For losses that
are the negative logarithm of a probability these are the gradients for targets drawn from the model, and the matrix is
the Fisher information (Martens 2020, "New insights and perspectives on the natural gradient method", JMLR 21(146)).
With the data's own targets it is the "empirical" one, another matrix (Kunstner, Balles and Hennig 2019, arXiv
1905.12558).

Shapes: b samples, C outputs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from hpcopt.errors import UsageError
from hpcopt.objective.losses import CrossEntropy, Loss, Squared
from hpcopt.random import uniforms

KINDS = ("true", "empirical")
"""Of Fisher information."""

MOST_OUTPUTS = 128
"""Most outputs of a loss that is known by its Hessian products only, whose C x C blocks are then decomposed."""


class OutputErrors:
    """Draws e_i for the samples of one batch, by counters: a sample's depends on its position in the batch alone.

    Args:
        loss: one term a sample.
        kind: "true" for covariance H_i; "empirical" for the gradient of the loss at the sample's own target, with a
            random sign, so that gradients of different samples are not correlated here either.
        seed: the run's seed.
        number: which draw of the run this is.
    """

    def __init__(self, loss: Loss, kind: str, seed: int, number: int) -> None:
        self._loss, self._kind, self._seed, self._number = loss, kind, seed, number

    def draw(self, outputs: torch.Tensor, targets: torch.Tensor, first: int) -> torch.Tensor:
        """Draw e for outputs (b, ...) of samples ``first``, ``first`` + 1, ..., in the shape of ``outputs``.

        Raises:
            UsageError: the loss has neither a known distribution nor few enough outputs.
        """
        if not len(outputs):
            return torch.zeros_like(outputs)
        outputs = outputs.detach()
        if self._kind == "empirical":
            return self._signs(outputs, first) * _gradients(self._loss, outputs, targets)
        if isinstance(self._loss, CrossEntropy):
            return self._drawn_labels(outputs, first)
        noise = self._normal(outputs, first)
        return noise if isinstance(self._loss, Squared) else _with_covariance(self._loss, outputs, targets, noise)

    def _drawn_labels(self, outputs: torch.Tensor, first: int) -> torch.Tensor:
        """The difference p - one_hot(y) with y drawn from p = softmax(o)."""
        sums = outputs.to(torch.float64).softmax(1).cumsum(1)
        u = self._uniforms(first, len(outputs)).to(sums.device)
        labels = (sums <= u[:, None] * sums[:, -1:]).sum(1).clamp_(max=outputs.shape[1] - 1)
        return outputs.softmax(1) - functional.one_hot(labels, outputs.shape[1]).to(outputs)

    def _normal(self, outputs: torch.Tensor, first: int) -> torch.Tensor:
        """Independent normal numbers of variance 1."""
        each = outputs[0].numel()
        u = self._uniforms(first * each, len(outputs) * each) + 2.0**-54  # never 0, whose quantile is -infinity
        normal: torch.Tensor = torch.special.ndtri(u)
        return normal.to(outputs).view(outputs.shape)

    def _signs(self, outputs: torch.Tensor, first: int) -> torch.Tensor:
        signs = 1 - 2 * (self._uniforms(first, len(outputs)) < 0.5).to(outputs)
        return signs.view(-1, *[1] * (outputs.ndim - 1))

    def _uniforms(self, first: int, count: int) -> torch.Tensor:
        return torch.from_numpy(uniforms(self._seed, "fisher", self._number, np.arange(first, first + count)))


def check_kind(loss: Loss, kind: str, outputs: int) -> None:
    """Refuse draws that would take a decomposition of too large a matrix a sample.

    Raises:
        UsageError: see above.
    """
    if kind == "true" and not isinstance(loss, (CrossEntropy, Squared)) and outputs > MOST_OUTPUTS:
        raise UsageError(
            f"targets cannot be drawn for the loss {loss.name} of {outputs} outputs: of a loss other than "
            f'"cross_entropy" and "squared" hpcopt knows products with its Hessian only, and then {MOST_OUTPUTS} '
            'outputs are the most. Use one of these two losses, fisher = "empirical", or another preconditioner.'
        )


def _gradients(loss: Loss, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of each sample's loss with regard to its outputs."""
    with torch.enable_grad():
        o = outputs.requires_grad_()
        return torch.autograd.grad(loss.sum(o, targets), o, materialize_grads=True)[0]


def _with_covariance(loss: Loss, outputs: torch.Tensor, targets: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """H_i^(1/2) x_i for noise x; NaN where H_i is not finite. What is negative in H_i counts as 0."""
    each = outputs[0].numel()
    check_kind(loss, "true", each)
    units = torch.eye(each, dtype=outputs.dtype, device=outputs.device).view(each, 1, *outputs.shape[1:])
    columns = [loss.hessian_product(outputs, targets, unit.expand_as(outputs).contiguous()) for unit in units]
    hessians = torch.stack([column.detach().reshape(len(outputs), each) for column in columns], dim=2)
    if not hessians.isfinite().all():
        return torch.full_like(noise, torch.nan)
    values, vectors = torch.linalg.eigh((hessians + hessians.mT) / 2)
    rounding = each * torch.finfo(values.dtype).eps * values[:, -1:]  # whose root would be far more than rounding
    scaled = torch.where(values > rounding, values, 0.0).sqrt_() * (
        vectors.mT @ noise.reshape(len(outputs), each, 1)
    ).squeeze(2)
    errors: torch.Tensor = vectors @ scaled.unsqueeze(2)
    return errors.view(outputs.shape)
