"""The step of ``hpcopt.linalg.sampled_tikhonov`` where the columns fall into blocks that meet in the bias only.

With U the eigenvectors of all blocks without the bias, the matrix of a trial is an arrow,

    U^T (G + Lambda I) U = [D + Lambda, v; v^T, c + Lambda],      s = c + Lambda - v^T (D + Lambda)^-1 v

and its inverse that of the diagonal D + Lambda with a matrix of rank one over s. So eigenvalue problems have the size
of a block, and a trial costs t times the sum of the squares of the blocks' widths.

Shapes: letters as there; p columns of all blocks without the bias; e is 1 where there is a bias, else 0; k trials.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Arrow(NamedTuple):
    """A symmetric matrix of blocks that meet in the bias: the blocks, their edges (p, e) and the corner (e,)."""

    blocks: list[torch.Tensor]
    border: torch.Tensor
    corner: torch.Tensor

    def times(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (..., p) times the blocks."""
        parts = rows.split([len(block) for block in self.blocks], dim=-1)
        return torch.cat([part @ block for part, block in zip(parts, self.blocks, strict=True)], dim=-1)


class SampledBlocks:
    """The new batch as Gram matrices of the blocks. Where these meet, in the bias, the matrix is the sum of them all.

    Args:
        windows: G of each block; the bias, if there is one, is the last column of each.
        grams: Z Z^T of the new batch for each block.
        cross: S of each block, (t, columns).
        square: |R|^2.
        weights: W (t, m), of which the bias is the last column.
        columns: those of each block.
        bias: whether there is one.
        free: 1 if Lambda does not hold the bias.
    """

    def __init__(
        self,
        windows: Sequence[torch.Tensor],
        grams: Sequence[torch.Tensor],
        cross: Sequence[torch.Tensor],
        square: float,
        weights: torch.Tensor,
        columns: Sequence[torch.Tensor],
        bias: bool,
        free: int = 0,
    ) -> None:
        (self.outputs, width), self._held = weights.shape, 1 - free
        self._bias = int(bias)
        self._columns = [own[: len(own) - self._bias] for own in columns]
        eigen = [torch.linalg.eigh(part[: len(own), : len(own)]) for part, own in self._with_columns(windows)]
        self._bases = [vectors for _, vectors in eigen]
        self.squares = torch.cat([squares for squares, _ in eigen]).clamp_(min=0.0)
        self._window, self._new, self._square = self._rotated(windows), self._rotated(grams), square
        self._right = self._turned(cross), sum(part[:, len(own) :] for part, own in self._with_columns(cross))
        self._weights = (
            self._turned([weights[:, own] for own in columns]),
            self._held * weights[:, width - self._bias :],
        )

    @property
    def extremes(self) -> tuple[float, float]:
        """Bounds of the squares of the window's singular values, from below and from above."""
        least, slope = float(self.squares.min()), self._window.border / self.squares[:, None]
        most = torch.cat([self.squares, self._window.corner]).max() + self._window.border.norm()
        if not least > 0 or not self._bias:
            return least, float(most)
        left = self._window.corner - (slope * self._window.border).sum(0)
        return float(1 / (1 / least + (1 + slope.square().sum()) / left.clamp(min=0.0))), float(most)

    def trace(self, damping: torch.Tensor) -> torch.Tensor:
        """That of Z^T (G + Lambda I)^-1 Z for each Lambda (k,)."""
        d = 1 / (self.squares + damping[:, None])
        diagonal = torch.cat([block.diagonal() for block in self._new.blocks])
        edge = d[:, :, None] * self._window.border
        bent = (self._new.times(edge.mT).mT * edge - 2 * self._new.border * edge).sum(1) + self._new.corner
        return d @ diagonal + (bent / self._left(d, damping)).sum(1)

    def residuals(self, trials: torch.Tensor, damping: torch.Tensor) -> torch.Tensor:
        """|W(l) Z - C|^2 for each trial l (k,), with Lambda + l as ``damping`` (k,), not below 0."""
        steps, bias = self._steps(trials, damping)
        linear = (steps * self._right[0]).sum((1, 2)) + (bias * self._right[1]).sum((1, 2))
        crossed = (steps @ self._new.border) * bias
        quadratic = (self._new.times(steps) * steps).sum((1, 2))
        quadratic += (2 * crossed + self._new.corner * bias.square()).sum((1, 2))
        found: torch.Tensor = self._square - 2 * linear + quadratic
        return found.clamp_(min=0.0)

    def moved(self, weights: torch.Tensor, trial: float, damping: float) -> torch.Tensor:
        """W after a step with lambda = ``trial`` and Lambda = ``damping``, (t, m)."""
        steps, bias = self._steps(*(torch.tensor([number], dtype=torch.float64) for number in (trial, damping)))
        moved = weights.clone()
        parts = steps[0].split([len(own) for own in self._columns], dim=1)
        for part, basis, own in zip(parts, self._bases, self._columns, strict=True):
            moved[:, own] -= part @ basis.T
        moved[:, weights.shape[1] - self._bias :] -= bias[0]
        return moved

    def _steps(self, trials: torch.Tensor, damping: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(S + l W) (G + Lambda I)^-1 in the basis, (k, t, p), and its column of the bias, (k, t, e)."""
        d, trials = 1 / (self.squares + damping[:, None]), trials[:, None, None]
        steps = (self._right[0] + trials * self._weights[0]) * d[:, None, :]
        bias = self._right[1] + trials * self._weights[1] - steps @ self._window.border
        bias = bias / self._left(d, damping)[:, None, :]
        return steps - (bias @ self._window.border.T) * d[:, None, :], bias

    def _left(self, d: torch.Tensor, damping: torch.Tensor) -> torch.Tensor:
        """For each trial s, (k, e): at least Lambda, if that is in it, whatever the rounding."""
        least = damping[:, None] * self._held
        left = self._window.corner + least - d @ self._window.border.square()
        return torch.maximum(left, torch.maximum(least, torch.finfo(torch.float64).eps * self._window.corner))

    def _rotated(self, parts: Sequence[torch.Tensor]) -> Arrow:
        """Blocks of a symmetric matrix in the basis."""
        blocks, border, corner = [], [], torch.zeros(self._bias, dtype=torch.float64)
        for (part, own), basis in zip(self._with_columns(parts), self._bases, strict=True):
            blocks.append(basis.T @ part[: len(own), : len(own)] @ basis)
            border.append(basis.T @ part[: len(own), len(own) :])
            corner += part.diagonal()[len(own) :]
        return Arrow(blocks, torch.cat(border), corner)

    def _turned(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Rows (t, columns) of each block in the basis, without the bias, (t, p)."""
        pairs = zip(self._with_columns(parts), self._bases, strict=True)
        return torch.cat([part[:, : len(own)] @ basis for (part, own), basis in pairs], dim=1)

    def _with_columns(self, parts: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(zip(parts, self._columns, strict=True))
