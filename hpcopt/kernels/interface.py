"""What a network needs of an array library: a few products, each on one rank's block of one layer.

Shapes: b instances, u inputs and v outputs of the block, C outputs of the network. Z (b, u) are activations, V (u, v)
weights, and M (b, C, v) the factors of the Jacobian: M[i, c, j] is the derivative of output c of instance i with
respect to the value that unit j passes to its activation. The letters are those of Wang et al. 2018 (arXiv:1802.00130).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

Array = TypeVar("Array")
"""A float32 or float64 array of the library; row-major and contiguous where it is written."""

ACTIVATIONS = ("sigmoid", "tanh", "relu")
"""Those whose derivative is known from their value, so that what they were applied to need not be kept."""


class Kernels(Protocol[Array]):
    """The products. Nothing here communicates, and all arrays of a call lie on the same device."""

    def affine(self, inputs: Array, weights: Array, biases: Array | None) -> Array:
        """T = Z V + b, a new array (b, v); without b where it is None."""
        ...

    def activate(self, activation: str, values: Array) -> Array:
        """Apply one of ``ACTIVATIONS`` in place and return the array."""
        ...

    def scale_by_slope(self, activation: str, activations: Array, target: Array) -> Array:
        """Multiply ``target``, (b, v) or (b, C, v), in place by the derivative of the activation, and return it.

        Args:
            activation: one of ``ACTIVATIONS``.
            activations: its values (b, v), from which the derivative is computed; 0 where ReLU is 0.
            target: what is scaled.
        """
        ...

    def last_factors(self, weights: Array, activation: str, activations: Array) -> Array:
        """M of the layer before a linear output layer, a new array (b, C, u): M[i, c, j] = W[j, c] sigma'_j.

        Args:
            weights: W (u, C), for all outputs of the network.
            activation: of the layer.
            activations: its values (b, u).
        """
        ...

    def pull_back(self, errors: Array, weights: Array) -> Array:
        """E V^T, a new array: (b, v) becomes (b, u), and (b, C, v) becomes (b, C, u)."""
        ...

    def add_outputs(self, factors: Array, units: Array, out: Array) -> None:
        """Add q[i, c] = sum_j M[i, c, j] t[i, j] to ``out`` (b, C), for ``units`` t (b, v)."""
        ...

    def units(self, factors: Array, outputs: Array) -> Array:
        """r[i, j] = sum_c M[i, c, j] y[i, c], a new array (b, v), for ``outputs`` y (b, C)."""
        ...

    def bend(
        self,
        factors: Sequence[Array],
        units: Sequence[Array],
        outputs: Array,
        probabilities: Array | None,
        scale: float,
    ) -> list[Array]:
        """Compute y = scale B (q + sum_l M_l t_l) in place of q, and r_l = M_l^T y: the work of a block.

        Args:
            factors: M_l (b, C, v_l) of some layers, none to any number.
            units: t_l (b, v_l), used up: what is returned may be in their place.
            outputs: q (b, C).
            probabilities: p (b, C) of a softmax, whose B is diag(p) - p p^T; None where B is the identity.
            scale: of y.

        Returns:
            r_l (b, v_l).
        """
        ...

    def add_gradient(self, inputs: Array, errors: Array, weights: Array, biases: Array | None) -> None:
        """Add G = Z^T r to ``weights`` (u, v), and the sum of ``errors`` r (b, v) over the instances to ``biases``."""
        ...
