"""When the direct solve of a block costs less than conjugate gradients: floating-point operations and memory.

Shapes: N instances, K outputs, and of each layer of the block u inputs and v units; T iterations. A multiplication and
an addition count as two operations. Letters as in ``hpcopt.linalg.gram_solve``.
"""

from __future__ import annotations

from collections.abc import Sequence

from hpcopt.linalg.gram_solve import PART

Shapes = Sequence[tuple[int, int]]
"""For each layer of a block (u, v)."""


def product_operations(samples: int, outputs: int, layers: Shapes) -> float:
    """Of one product with the block's Gauss-Newton matrix: 4 N v (u + K) for each layer."""
    return 4.0 * samples * sum(v * (u + outputs) for u, v in layers)


def direct_operations(samples: int, outputs: int, layers: Shapes) -> float:
    """Of the direct solve: half of the symmetric Gram matrix, its Cholesky factor, and two products to use it.

    The Gram matrix of a layer needs N^2 u for the inputs, (N K)^2 v for the factors, and (N K)^2 to multiply and add.
    """
    rows = float(samples * outputs)
    gram = sum(samples**2 * u + rows**2 * (v + 1) for u, v in layers)
    return gram + rows**3 / 3 + 4 * rows**2 + 2 * product_operations(samples, outputs, layers)


def direct_bytes(samples: int, outputs: int, layers: Shapes) -> float:
    """At most held at a time: the Gram matrix, its factor, a buffer, and the largest layer's M in two copies.

    In float64, which is also what follows where float32 does not do.
    """
    rows = float(samples * outputs)
    return 8 * (2 * rows**2 + PART + max(samples * (u + 2 * outputs * v) for u, v in layers))


def direct_is_cheaper(samples: int, outputs: int, layers: Shapes, iterations: float, memory: float) -> bool:
    """Whether the direct solve fits into the memory and takes fewer operations than the iterations.

    Args:
        samples: N.
        outputs: K.
        layers: (u, v) of each layer of the block.
        iterations: T, what conjugate gradients are expected to need, for instance what they last did.
        memory: bytes that the direct solve may take.
    """
    if direct_bytes(samples, outputs, layers) > memory:
        return False
    return direct_operations(samples, outputs, layers) < iterations * product_operations(samples, outputs, layers)
