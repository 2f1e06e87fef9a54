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

import numpy as np
import numpy.typing as npt

from hpcopt.linalg.sampled_tikhonov import Array


class Arrow(NamedTuple):
    """A symmetric matrix of blocks that meet in the bias.

    Attributes:
        blocks: of one that is diagonal, its diagonal.
        border: their edges (p, e).
        corner: where they meet, (e,).
    """

    blocks: list[Array]
    border: Array
    corner: Array

    @property
    def diagonal(self) -> Array:
        """That of the blocks, (p,)."""
        return np.concatenate([block if block.ndim == 1 else block.diagonal() for block in self.blocks])

    def times(self, rows: Array) -> Array:
        """Rows (..., p) times the blocks."""
        flat = rows.reshape(-1, rows.shape[-1])
        parts = zip(_split(flat, self.blocks), self.blocks, strict=True)
        each = [part * block if block.ndim == 1 else part @ block for part, block in parts]
        return np.concatenate(each, axis=1).reshape(rows.shape)


class SampledBlocks:
    """The new batch as Gram matrices of the blocks. Where these meet, in the bias, the matrix is the sum of them all.

    Args:
        windows: G of each block; the bias, if there is one, is the last column of each.
        grams: Z Z^T of the new batch for each block; the windows themselves where there is no batch before it.
        cross: S of each block, (t, columns).
        square: |R|^2.
        weights: W (t, m), of which the bias is the last column.
        columns: those of each block.
        bias: whether there is one.
        free: 1 if Lambda does not hold the bias.
    """

    def __init__(
        self,
        windows: Sequence[Array],
        grams: Sequence[Array],
        cross: Sequence[Array],
        square: float,
        weights: Array,
        columns: Sequence[npt.NDArray[np.int64]],
        bias: bool,
        free: int = 0,
    ) -> None:
        (self.outputs, width), self._held = weights.shape, 1 - free
        self._bias, self._square = int(bias), square
        self._columns = [own[: len(own) - self._bias] for own in columns]
        eigen = [np.linalg.eigh(part[: len(own), : len(own)]) for part, own in self._with_columns(windows)]
        self._bases = [vectors for _, vectors in eigen]
        diagonals = [np.maximum(squares, 0.0) for squares, _ in eigen]
        self.squares = np.concatenate(diagonals)
        self._window = Arrow(diagonals, *self._edges(windows))
        self._new = self._window if windows is grams else Arrow(self._rotated(grams), *self._edges(grams))
        self._right = self._turned(cross), sum(part[:, len(own) :] for part, own in self._with_columns(cross))
        self._weights = (
            self._turned([weights[:, own] for own in columns]),
            self._held * weights[:, width - self._bias :],
        )

    @property
    def extremes(self) -> tuple[float, float]:
        """Bounds of the squares of the window's singular values, from below and from above."""
        least, border = float(self.squares.min()), self._window.border
        corner, length = self._window.corner, float(np.sqrt(np.square(border).sum()))
        most = float(np.concatenate([self.squares, corner]).max()) + length
        if not least > 0 or not self._bias:
            return least, most
        slope = border / self.squares[:, None]
        left = np.maximum(corner - (slope * border).sum(0), 0.0)
        return float((least * left / (left + least * (1 + np.square(slope).sum())))[0]), most

    def trace(self, damping: Array) -> Array:
        """That of Z^T (G + Lambda I)^-1 Z for each Lambda (k,)."""
        d = self._inverses(damping)
        edge = d[:, None, :] * self._window.border.T
        bent = ((self._new.times(edge) - 2 * self._new.border.T) * edge).sum(2) + self._new.corner
        found: Array = d @ self._new.diagonal + (bent / self._left(d, damping)).sum(1)
        return found

    def residuals(self, trials: Array, damping: Array) -> Array:
        """|W(l) Z - C|^2 for each trial l (k,), with Lambda + l as ``damping`` (k,), not below 0."""
        steps, bias = self._steps(trials, damping)
        quadratic = ((self._new.times(steps) - 2 * self._right[0]) * steps).sum((1, 2))
        edges = 2 * (steps @ self._new.border - self._right[1]) + self._new.corner * bias
        found: Array = self._square + quadratic + (edges * bias).sum((1, 2))
        return np.maximum(found, 0.0)

    def moved(self, weights: Array, trial: float, damping: float) -> Array:
        """W after a step with lambda = ``trial`` and Lambda = ``damping``, (t, m)."""
        steps, bias = self._steps(np.array([trial]), np.array([damping]))
        moved: Array = weights.copy()
        parts = zip(_split(steps[0], self._bases), self._bases, self._columns, strict=True)
        for part, basis, own in parts:
            moved[:, own] -= part @ basis.T
        moved[:, weights.shape[1] - self._bias :] -= bias[0]
        return moved

    def _inverses(self, damping: Array) -> Array:
        """For each Lambda (k,) the inverse of the diagonal, (k, p)."""
        total: Array = np.add.outer(damping, self.squares)
        return np.reciprocal(total, out=total)

    def _steps(self, trials: Array, damping: Array) -> tuple[Array, Array]:
        """(S + l W) (G + Lambda I)^-1 in the basis, (k, t, p), and its column of the bias, (k, t, e)."""
        d, trials = self._inverses(damping), trials[:, None, None]
        steps: Array = (self._right[0] + trials * self._weights[0]) * d[:, None, :]
        bias = self._right[1] + trials * self._weights[1] - steps @ self._window.border
        bias = bias / self._left(d, damping)[:, None, :]
        return steps - (bias @ self._window.border.T) * d[:, None, :], bias

    def _left(self, d: Array, damping: Array) -> Array:
        """For each trial s, (k, e): at least Lambda, if that is in it, whatever the rounding."""
        least = damping[:, None] * self._held
        left = self._window.corner + least - d @ np.square(self._window.border)
        found: Array = np.maximum(left, np.maximum(least, np.finfo(np.float64).eps * self._window.corner))
        return found

    def _edges(self, parts: Sequence[Array]) -> tuple[Array, Array]:
        """The border of a symmetric matrix in the basis, and its corner."""
        pairs = list(zip(self._with_columns(parts), self._bases, strict=True))
        border = [basis.T @ part[: len(own), len(own) :] for (part, own), basis in pairs]
        corners = [part.diagonal()[len(own) :] for (part, own), _ in pairs]
        return np.concatenate(border), np.sum(corners, axis=0)

    def _rotated(self, parts: Sequence[Array]) -> list[Array]:
        """Blocks of a symmetric matrix in the basis."""
        pairs = zip(self._with_columns(parts), self._bases, strict=True)
        return [basis.T @ part[: len(own), : len(own)] @ basis for (part, own), basis in pairs]

    def _turned(self, parts: Sequence[Array]) -> Array:
        """Rows (t, columns) of each block in the basis, without the bias, (t, p)."""
        pairs = zip(self._with_columns(parts), self._bases, strict=True)
        return np.concatenate([part[:, : len(own)] @ basis for (part, own), basis in pairs], axis=1)

    def _with_columns(self, parts: Sequence[Array]) -> list[tuple[Array, npt.NDArray[np.int64]]]:
        return list(zip(parts, self._columns, strict=True))


def _split(rows: Array, blocks: Sequence[Array]) -> list[Array]:
    """Rows (any, p) as those of each block."""
    return np.split(rows, np.cumsum([len(block) for block in blocks])[:-1], axis=1)
