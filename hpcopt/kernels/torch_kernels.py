"""The products in torch, on the processor or on a device.

Products with the factors M are written as row vector times matrix. On the processor torch takes M t as a matrix of one
column in a slow path: for 1,024 instances, 10 outputs and 512 units in float32 on one thread that took 4.1 ms, the same
product as t^T M^T 1.0 ms, and reading M once takes about 0.6 ms.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class TorchKernels:
    """``hpcopt.kernels.interface.Kernels`` for torch tensors. Nothing is recorded for autograd."""

    name = "torch"

    @torch.no_grad()
    def affine(self, inputs: torch.Tensor, weights: torch.Tensor, biases: torch.Tensor | None) -> torch.Tensor:
        """T = Z V + b, (b, v)."""
        return inputs @ weights if biases is None else torch.addmm(biases, inputs, weights)

    @torch.no_grad()
    def activate(self, activation: str, values: torch.Tensor) -> torch.Tensor:
        """Apply the activation in place."""
        if activation == "sigmoid":
            return values.sigmoid_()
        return values.tanh_() if activation == "tanh" else values.relu_()

    @torch.no_grad()
    def scale_by_slope(self, activation: str, activations: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Multiply (b, v) or (b, C, v) in place by the derivative of the activation."""
        slope = _slope(activation, activations)
        return target.mul_(slope if target.ndim == 2 else slope.unsqueeze(1))

    @torch.no_grad()
    def last_factors(self, weights: torch.Tensor, activation: str, activations: torch.Tensor) -> torch.Tensor:
        """M[i, c, j] = W[j, c] sigma'_j, (b, C, u)."""
        return weights.T.contiguous() * _slope(activation, activations).unsqueeze(1)

    @torch.no_grad()
    def pull_back(self, errors: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """E V^T, (b, u) or (b, C, u)."""
        rows = errors.reshape(-1, errors.shape[-1]) @ weights.T
        return rows.view(*errors.shape[:-1], weights.shape[0])

    @torch.no_grad()
    def add_outputs(self, factors: torch.Tensor, units: torch.Tensor, out: torch.Tensor) -> None:
        """q[i, c] += sum_j M[i, c, j] t[i, j]."""
        out.unsqueeze(1).baddbmm_(units.unsqueeze(1), factors.to(units.dtype).transpose(1, 2))

    @torch.no_grad()
    def units(self, factors: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        """r[i, j] = sum_c M[i, c, j] y[i, c]."""
        return torch.bmm(outputs.unsqueeze(1), factors.to(outputs.dtype)).squeeze(1)

    @torch.no_grad()
    def bend(
        self,
        factors: Sequence[torch.Tensor],
        units: Sequence[torch.Tensor],
        outputs: torch.Tensor,
        probabilities: torch.Tensor | None,
        scale: float,
    ) -> list[torch.Tensor]:
        """Compute y = scale B (q + sum_l M_l t_l) in place of q, and r_l = M_l^T y."""
        for layer, tangents in zip(factors, units, strict=True):
            self.add_outputs(layer, tangents, outputs)
        if probabilities is not None:
            outputs.copy_(softmax_product(probabilities, outputs))
        outputs.mul_(scale)
        return [self.units(layer, outputs) for layer in factors]

    @torch.no_grad()
    def add_gradient(
        self, inputs: torch.Tensor, errors: torch.Tensor, weights: torch.Tensor, biases: torch.Tensor | None
    ) -> None:
        """G += Z^T r, and the column sums of r."""
        weights.addmm_(inputs.T, errors)
        if biases is not None:
            biases.add_(errors.sum(dim=0))


def softmax_product(probabilities: torch.Tensor, tangents: torch.Tensor) -> torch.Tensor:
    """(diag(p) - p p^T) t of every instance (..., b, C), a new array."""
    weighted = probabilities * tangents
    return weighted.addcmul_(probabilities, weighted.sum(dim=-1, keepdim=True), value=-1)


def _slope(activation: str, activations: torch.Tensor) -> torch.Tensor:
    """The derivative of the activation from its values."""
    if activation == "sigmoid":
        return activations * (1 - activations)
    if activation == "tanh":
        return torch.addcmul(torch.ones_like(activations), activations, activations, value=-1)
    return (activations > 0).to(activations.dtype)
