"""Limited-memory matrices in compact form and their spectral decomposition from inner products alone.

Shapes: n parameters, m pairs at most, k columns of the compact form, r <= k its numerical rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CompactModel:
    """B = gamma I + Psi W Psi^T, where the columns of Psi (n, k) are combinations of the rows of a ``PairMemory``.

    Attributes:
        gamma: the curvature outside of the span of Psi, above 0.
        columns: (2 (m + 1), k) float64, Psi = rows^T columns.
        middle: (k, k) float64, W.
    """

    gamma: float
    columns: torch.Tensor
    middle: torch.Tensor

    def product(self, coefficients: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
        """B v for v = rows^T coefficients, as coefficients (2 (m + 1),)."""
        return self.gamma * coefficients + self.columns @ (self.middle @ (self.columns.T @ (gram @ coefficients)))


@dataclass(frozen=True)
class Spectrum:
    """The eigenvalues of B and an orthonormal basis of the eigenvectors that are not just gamma's.

    Attributes:
        gamma: eigenvalue of everything orthogonal to the basis.
        values: (r,) float64, ascending, the eigenvalues within the basis.
        basis: (2 (m + 1), r) float64, coefficients of the eigenvectors over the rows of the ``PairMemory``.
    """

    gamma: float
    values: torch.Tensor
    basis: torch.Tensor


def decompose(model: CompactModel, gram: torch.Tensor, tolerance: float) -> Spectrum:
    """Spectral decomposition of a compact model (Burdakov, Gong, Zikrin and Yuan 2017; Brust, Erway and Marcia 2017).

    They factor Psi = Q R by QR or Cholesky. Here Q comes from the eigenvectors of the scaled Psi^T Psi, of which
    those with an eigenvalue below ``tolerance`` are left out: dependent pairs are no special case, and only the Gram
    matrix is needed, never the n-vectors.

    Args:
        model: the matrix.
        gram: (2 (m + 1), 2 (m + 1)) inner products of the rows.
        tolerance: smallest eigenvalue of Psi^T Psi with unit columns that is more than rounding; about ten times the
            relative error of the inner products.
    """
    inner = model.columns.T @ gram @ model.columns
    scale = inner.diagonal().clamp(min=torch.finfo(torch.float64).tiny).rsqrt()
    weights, vectors = torch.linalg.eigh(scale[:, None] * inner * scale)
    kept = weights > tolerance
    to_orthonormal = scale[:, None] * vectors[:, kept] * weights[kept].rsqrt()
    seen = to_orthonormal.T @ inner
    values, rotation = torch.linalg.eigh(seen @ model.middle @ seen.T)
    return Spectrum(model.gamma, values + model.gamma, model.columns @ to_orthonormal @ rotation)
