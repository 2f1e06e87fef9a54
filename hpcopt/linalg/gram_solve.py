"""The damped Gauss-Newton system of one diagonal block, solved directly in the space of the outputs.

A block is a stack of layers, or of parts of layers, of a fully connected network. Its Jacobian J (N K, n_p) is known in
factors, dz_c / dW_tj = M[i, c, j] Z[i, t], and its system is  (mu I + 1/N J^T B J) d = -g.  With B = S S^T,
Woodbury's identity needs the factorisation of a matrix of N K rows instead of n_p:

    d = -1/mu (g - Jt^T y),   (mu N I + Jt Jt^T) y = Jt g   with Jt = S^T J,

and Jt Jt^T is a sum over the layers of Hadamard products of small Gram matrices, (Z Z^T) o (S^T M)(S^T M)^T, so that
J is never formed (Ren and Goldfarb 2019, arXiv 1906.02353). For the squared loss S = I. For cross-entropy, where
B = diag(p) - p p^T is singular, S = diag(sqrt p) - p sqrt(p)^T has S S^T = B and needs no decomposition.

Shapes: N instances, K outputs, and of each layer u inputs and v units on this rank. The letters are those of Wang et
al. 2018 (arXiv 1802.00130), with mu for lambda + 1/C. Nothing here communicates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from hpcopt.kernels.torch_kernels import TorchKernels

ACCEPTED = 1e-3
"""Relative residual up to which a solution is taken: sigma_cg, to which conjugate gradients would solve the system."""
MORE_DAMPING = 1e3
"""Factor of mu where float64 cannot solve the system either."""
ATTEMPTS = 4
"""Systems that are tried in float64, each with more damping."""
PART = 2**22
"""Elements of the Gram matrix that are computed at a time, for which there is a second buffer."""

_kernels = TorchKernels()


@dataclass(frozen=True)
class LayerFactors:
    """The Jacobian of the outputs with respect to one layer of the block, in factors.

    Attributes:
        inputs: Z (N, u); a last column of ones stands for biases.
        factors: M (N, K, v); an expanded view is fine, see ``output_factors``.
    """

    inputs: torch.Tensor
    factors: torch.Tensor

    def to(self, dtype: torch.dtype) -> LayerFactors:
        """The same in another precision; itself where that is its own."""
        return LayerFactors(self.inputs.to(dtype), self.factors.to(dtype))


@dataclass(frozen=True)
class BlockSolution:
    """d of one block, and how it was found.

    Attributes:
        direction: for each layer (u, v), in the precision of the gradient.
        residual: |(mu I + 1/N J^T B J) d + g| / |g| with the mu below, 0 for g = 0.
        damping: the mu of the system that was solved: what was asked for, or more.
    """

    direction: tuple[torch.Tensor, ...]
    residual: float
    damping: float


def output_factors(outputs: int, first: int, width: int, inputs: torch.Tensor) -> torch.Tensor:
    """M (N, K, width) of a linear output layer on a rank that holds outputs ``first`` ... ``first + width - 1``.

    It is a view of a part of the identity, the same for every instance, in precision and place of ``inputs`` (N, u).
    """
    identity = torch.eye(outputs, dtype=inputs.dtype, device=inputs.device)
    return identity[:, first : first + width].expand(len(inputs), outputs, width)


@torch.no_grad()
def solve_by_gram(
    layers: Sequence[LayerFactors],
    gradient: Sequence[torch.Tensor],
    damping: float,
    probabilities: torch.Tensor | None = None,
) -> BlockSolution | None:
    """Solve (mu I + 1/N J^T B J) d = -g for one block, in the precision of g. Local.

    Where the factorisation fails or the residual is above ``ACCEPTED``, float64 is tried next, then more damping. Every
    d that is returned has g^T d < 0, but for g = 0.

    Args:
        layers: all layers of the block.
        gradient: g as one (u, v) for each layer.
        damping: mu, above 0.
        probabilities: softmax probabilities p (N, K) for cross-entropy; None for the squared loss, where B = I.

    Returns:
        None when the largest damping gave nothing either, as it does when something in the system is not finite.
    """
    given = gradient[0].dtype
    plan = [(given, damping)] if given != torch.float64 else []
    plan += [(torch.float64, damping * MORE_DAMPING**number) for number in range(ATTEMPTS)]
    system: _System | None = None
    for dtype, mu in plan:
        if system is None or system.dtype != dtype:
            system = None  # two Gram matrices need not exist at a time
            system = _System(layers, gradient, probabilities, dtype)
        found = system.solve(mu)
        if found is not None and found.residual <= ACCEPTED:
            return found
    return None


@torch.no_grad()
def gram_matrix(layers: Sequence[LayerFactors], probabilities: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Jt Jt^T (N K, N K), of which only the lower triangle is meaningful.

    Rows are ordered by instance, then output. The part of a layer is computed and multiplied a few rows at a time.
    """
    samples, outputs = layers[0].factors.shape[:2]
    gram = layers[0].inputs.new_zeros(samples * outputs, samples * outputs, dtype=dtype)
    rows = max(1, PART // (samples * outputs**2))
    for layer in layers:
        inputs = layer.inputs.to(dtype)
        factors = _weighted(layer.factors.to(dtype), probabilities).reshape(samples * outputs, -1)
        for start in range(0, samples, rows):
            stop = min(start + rows, samples)
            part = factors[start * outputs : stop * outputs] @ factors[: stop * outputs].T
            alike = inputs[start:stop] @ inputs[:stop].T
            part.view(stop - start, outputs, stop, outputs).mul_(alike[:, None, :, None])
            gram[start * outputs : stop * outputs, : stop * outputs] += part
    return gram


class _System:
    """The system in one precision, with its Gram matrix."""

    def __init__(
        self,
        layers: Sequence[LayerFactors],
        gradient: Sequence[torch.Tensor],
        probabilities: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        self.dtype, self._given = dtype, gradient[0].dtype
        self._layers, self._gradient = layers, [part.to(dtype) for part in gradient]
        # Rounded probabilities do not add up to 1, and B would have a small curvature where it has none.
        self._p = None if probabilities is None else functional.normalize(probabilities.to(dtype), p=1.0, dim=1)
        self._samples, self._outputs = layers[0].factors.shape[:2]
        self._gram = gram_matrix(layers, self._p, dtype)
        self._diagonal = self._gram.diagonal().clone()
        self._right = _root_transposed(self._push(self._gradient), self._p).reshape(-1, 1)

    def solve(self, mu: float) -> BlockSolution | None:
        """The solution for this mu; None where the matrix has no Cholesky factor or d is no descent direction."""
        torch.add(self._diagonal, mu * self._samples, out=self._gram.diagonal())
        factor, failed = torch.linalg.cholesky_ex(self._gram)
        if int(failed):
            return None
        y = torch.cholesky_solve(self._right, factor).view(self._samples, self._outputs)
        del factor
        correction = self._pull(_root(y, self._p))
        direction = [(back - g) / mu for back, g in zip(correction, self._gradient, strict=True)]
        residual = 0.0
        if _norm(self._gradient) != 0:
            residual = self._residual(direction, mu)
            slope = sum(float((g * d).sum()) for g, d in zip(self._gradient, direction, strict=True))
            if not slope < 0:
                return None
        return BlockSolution(tuple(part.to(self._given) for part in direction), residual, mu)

    def _residual(self, direction: Sequence[torch.Tensor], mu: float) -> float:
        """|(mu I + 1/N J^T B J) d + g| / |g|."""
        curved = self._pull(_root(_root_transposed(self._push(direction), self._p), self._p))
        rests = [c / self._samples + mu * d + g for c, d, g in zip(curved, direction, self._gradient, strict=True)]
        return _norm(rests) / _norm(self._gradient)

    def _push(self, matrices: Sequence[torch.Tensor]) -> torch.Tensor:
        """J v (N, K) for v as one (u, v) for each layer."""
        total = matrices[0].new_zeros(self._samples, self._outputs)
        for layer, matrix in zip(self._layers, matrices, strict=True):
            own = layer.to(self.dtype)
            _kernels.add_outputs(own.factors, _kernels.affine(own.inputs, matrix, None), total)
        return total

    def _pull(self, outputs: torch.Tensor) -> list[torch.Tensor]:
        """J^T y, one (u, v) for each layer."""
        found = []
        for layer, like in zip(self._layers, self._gradient, strict=True):
            own = layer.to(self.dtype)
            found.append(torch.zeros_like(like))
            _kernels.add_gradient(own.inputs, _kernels.units(own.factors, outputs), found[-1], None)
        return found


def _weighted(factors: torch.Tensor, p: torch.Tensor | None) -> torch.Tensor:
    """S^T M (N, K, v)."""
    if p is None:
        return factors
    return (factors - torch.bmm(p.unsqueeze(1), factors)) * p.sqrt().unsqueeze(2)


def _root_transposed(outputs: torch.Tensor, p: torch.Tensor | None) -> torch.Tensor:
    """S^T q (N, K)."""
    return outputs if p is None else p.sqrt() * (outputs - (p * outputs).sum(dim=1, keepdim=True))


def _root(outputs: torch.Tensor, p: torch.Tensor | None) -> torch.Tensor:
    """S y (N, K)."""
    if p is None:
        return outputs
    scaled = p.sqrt() * outputs
    return scaled - p * scaled.sum(dim=1, keepdim=True)


def _norm(matrices: Sequence[torch.Tensor]) -> float:
    return math.hypot(*(float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) for matrix in matrices))
