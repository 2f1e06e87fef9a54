"""The block-diagonal direction of distributed Newton: every rank solves for its own variables, without communication.

    (G_p + lambda I) d_p = -g_p,    d = (d_1 ... d_R)

G_p is the diagonal block of the Gauss-Newton matrix G for the variables of rank p. Conjugate gradients start at 0 and
end by the rank's own |g_p|, or where the phase ends for all because enough ranks have finished; wherever they end,
g_p^T d_p < 0. A direct solution takes the Gram matrix of the factors of the Jacobian instead (Wang et al. 2018, Neural
Computation 30(6), arXiv 1802.00130, whose letters are used). Where several ranks hold the same variables, each with its
own part of the samples, d_p is the mean of what they find. Shapes: n variables of this rank, N samples, C outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

import torch

from hpcopt.linalg.conjugate_gradient import conjugate_gradients
from hpcopt.linalg.gram_cost import direct_is_cheaper, direct_operations, product_operations
from hpcopt.linalg.gram_solve import LayerFactors, output_factors, solve_by_gram
from hpcopt.objective import vectors
from hpcopt.objective.protocol import Block, BlockFactors, LayerColumns, Vector

SKIPPED = 1e-12
"""A rank whose |g_p| is below this part of |g| has nothing to solve, and d_p = 0."""


@dataclass(frozen=True)
class BlockSolve:
    """What the ranks came to.

    Attributes:
        direction: d_p (n,) of this rank.
        iterations: of conjugate gradients, of each rank; 0 where a rank solved directly or had nothing to solve.
        finite: whether all numbers of all ranks were.
    """

    direction: Vector
    iterations: tuple[int, ...]
    finite: bool

    def expected(self, before: float) -> float:
        """Iterations to expect in the next phase: the mean of the ranks that iterated, or what they did before."""
        counts = [count for count in self.iterations if count]
        return fmean(counts) if counts else before


@dataclass(frozen=True)
class _Own:
    """This rank's part of it, with its work in products."""

    direction: Vector
    iterations: int = 0
    products: float = 0.0
    finite: bool = True


@dataclass(frozen=True)
class BlockSolver:
    """Solves the system of each rank's block; the fields are options of ``Newton``."""

    blocks: str
    solver: str
    tolerance: float
    most: int

    def solve(self, block: Block, gradient: Vector, norm: float, damping: float, expected: float) -> BlockSolve:
        """Solve on every rank. *Collective*: the pace of the phase, and one small reduction at its end.

        Args:
            block: G_p.
            gradient: g_p (n,).
            norm: |g| over all ranks.
            damping: lambda.
            expected: iterations that conjugate gradients are expected to need; 0 where that is not known.
        """
        block.begin()
        own = self._solve(block, gradient, norm, damping, expected)
        block.end()
        iterations, finite = block.share(own.iterations, own.products, own.finite)
        return BlockSolve(block.mean(own.direction) if finite else own.direction, iterations, finite)

    def _solve(self, block: Block, gradient: Vector, norm: float, damping: float, expected: float) -> _Own:
        if not block.samples or vectors.dot(gradient, gradient) <= (SKIPPED * norm) ** 2:
            return _Own(torch.zeros_like(gradient))
        if self.solver == "gram" or (self.solver == "auto" and self._direct_pays(block, expected)):
            return self._by_gram(block, gradient, damping)
        found = conjugate_gradients(
            lambda v: block.product(v, self.blocks == "layer"),
            gradient,
            damping,
            vectors.inner,
            tolerance=self.tolerance,
            most=self.most,
            goes_on=block.goes_on,
            local=True,
        )
        return _Own(found.direction, found.iterations, float(found.iterations), found.finite)

    def _groups(self, layers: int) -> list[slice]:
        """The layers of each block."""
        return [slice(m, m + 1) for m in range(layers)] if self.blocks == "layer" else [slice(0, layers)]

    def _direct_pays(self, block: Block, expected: float) -> bool:
        return all(
            direct_is_cheaper(block.samples, block.outputs, block.shapes[group], expected, block.memory)
            for group in self._groups(len(block.shapes))
        )

    def _by_gram(self, block: Block, gradient: Vector, damping: float) -> _Own:
        factors, direction = block.factors(), torch.zeros_like(gradient)
        groups = self._groups(len(factors.layers))
        solved = [_direct(block, factors, group, gradient, damping, direction) for group in groups]
        operations = sum(direct_operations(block.samples, block.outputs, block.shapes[group]) for group in groups)
        products = operations / product_operations(block.samples, block.outputs, block.shapes)
        return _Own(direction, 0, products, all(solved))


def _direct(block: Block, factors: BlockFactors, group: slice, gradient: Vector, damping: float, into: Vector) -> bool:
    """Solve for a group of layers by their Gram matrix; whether a direction was found."""
    layers = factors.layers[group]
    given = [_matrix(gradient, layer) for layer in layers]
    mu = damping + block.weight_decay
    found = solve_by_gram([_written_out(layer, block.outputs) for layer in layers], given, mu, factors.probabilities)
    if found is None:
        return False
    for layer, part in zip(layers, found.direction, strict=True):
        _matrix(into, layer).copy_(part)
    return True


def _matrix(vector: Vector, layer: LayerColumns) -> torch.Tensor:
    """The rank's part of a layer in a flat vector (n,), as a view (u, v)."""
    return vector[layer.place].view(layer.inputs.shape[1], -1)


def _written_out(layer: LayerColumns, outputs: int) -> LayerFactors:
    """Z and M, also of the last layer."""
    if layer.factors is not None:
        return LayerFactors(layer.inputs, layer.factors)
    first, last = layer.outputs.start, layer.outputs.stop
    return LayerFactors(layer.inputs, output_factors(outputs, first, last - first, layer.inputs))
