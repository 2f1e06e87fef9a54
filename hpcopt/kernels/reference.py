"""The products in NumPy as their definitions say: what other kernels are compared with. Float64, or complex.

Complex arrays serve for complex-step derivatives, which have no rounding error of a difference (Squire and Trapp 1998,
doi:10.1137/S003614459631241X).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

Matrix: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class NumpyKernels:
    """The reference of ``hpcopt.kernels.interface.Kernels``."""

    def affine(self, inputs: Matrix, weights: Matrix, biases: Matrix | None) -> Matrix:
        """T = Z V + b, (b, v)."""
        product: Matrix = np.matmul(inputs, weights)
        if biases is not None:
            product += biases
        return product

    def activate(self, activation: str, values: Matrix) -> Matrix:
        """Apply the activation in place."""
        if activation == "sigmoid":
            values[...] = 1 / (1 + np.exp(-values))
        elif activation == "tanh":
            values[...] = np.tanh(values)
        else:
            values[values.real <= 0] = 0
        return values

    def scale_by_slope(self, activation: str, activations: Matrix, target: Matrix) -> Matrix:
        """Multiply (b, v) or (b, C, v) in place by the derivative of the activation."""
        slope = _slope(activation, activations)
        target *= slope if target.ndim == 2 else slope[:, None, :]
        return target

    def last_factors(self, weights: Matrix, activation: str, activations: Matrix) -> Matrix:
        """M[i, c, j] = W[j, c] sigma'_j, (b, C, u)."""
        factors: Matrix = np.einsum("jc,ij->icj", weights, _slope(activation, activations))
        return factors

    def pull_back(self, errors: Matrix, weights: Matrix) -> Matrix:
        """E V^T, (b, u) or (b, C, u)."""
        product: Matrix = np.einsum("...v,uv->...u", errors, weights)
        return product

    def add_outputs(self, factors: Matrix, units: Matrix, out: Matrix) -> None:
        """q[i, c] += sum_j M[i, c, j] t[i, j]."""
        out += np.einsum("icj,ij->ic", factors, units)

    def units(self, factors: Matrix, outputs: Matrix) -> Matrix:
        """r[i, j] = sum_c M[i, c, j] y[i, c]."""
        product: Matrix = np.einsum("icj,ic->ij", factors, outputs)
        return product

    def bend(
        self,
        factors: Sequence[Matrix],
        units: Sequence[Matrix],
        outputs: Matrix,
        probabilities: Matrix | None,
        scale: float,
    ) -> list[Matrix]:
        """Compute y = scale B (q + sum_l M_l t_l) in place of q, and r_l = M_l^T y."""
        for layer, tangents in zip(factors, units, strict=True):
            self.add_outputs(layer, tangents, outputs)
        if probabilities is not None:
            outputs -= (probabilities * outputs).sum(axis=-1, keepdims=True)
            outputs *= probabilities
        outputs *= scale
        return [self.units(layer, outputs) for layer in factors]

    def add_gradient(self, inputs: Matrix, errors: Matrix, weights: Matrix, biases: Matrix | None) -> None:
        """G += Z^T r, and the column sums of r."""
        weights += inputs.T @ errors
        if biases is not None:
            biases += errors.sum(axis=0)


def _slope(activation: str, activations: Matrix) -> Matrix:
    """The derivative of the activation from its values."""
    if activation == "sigmoid":
        slope: Matrix = activations * (1 - activations)
    elif activation == "tanh":
        slope = 1 - activations**2
    else:
        slope = (activations.real > 0).astype(activations.dtype)
    return slope
