"""What a model with a linear last layer offers a method that solves for that layer.

The outputs on a batch are W Z, with Z the features, what the model makes of the inputs before its last layer, and a row
of ones for the bias. In a convolution a row of the design Z^T belongs to a pixel and holds what its kernel sees. Where
that are some of the columns only, these are a block: blocks have no row in common, and no column but that of the bias.

Shapes: n parameters, m columns of the design with that of the bias, t outputs, N rows of a batch over all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import torch

from hpcopt.objective.protocol import Batch, Objective, Vector


class Rows(NamedTuple):
    """Some of this rank's rows of a batch, float64, scaled by 1 / sqrt(samples of the batch on all ranks).

    Attributes:
        blocks: the blocks of columns that have these rows, each with outputs of its own.
        design: (rows, columns of each of the blocks).
        residual: W Z - C of the outputs of the first block, then of the next one, (rows, t times the blocks).
    """

    blocks: tuple[int, ...]
    design: torch.Tensor
    residual: torch.Tensor


class Few(NamedTuple):
    """Features and targets of which each is a row, in float64 on the CPU.

    Attributes:
        features: (rows, m), or without the column of the bias.
        targets: (rows, t).
        scale: what makes rows and residuals of them.
    """

    features: torch.Tensor
    targets: torch.Tensor
    scale: float


class Normal(NamedTuple):
    """The normal equations of some rows of a block, in float64 on the CPU.

    Attributes:
        gram: Z Z^T (columns, columns).
        cross: Z R^T (columns, t).
        square: |R|^2, or with those of other blocks in that of the first.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    square: float


class Features(Protocol):
    """The features of a batch at one point, with what is needed to differentiate them.

    Attributes:
        count: N.
    """

    count: int

    def rows(self) -> Iterable[Rows]:
        """This rank's rows, in parts, each made when it is asked for; there may be none."""
        ...

    def few(self, most: int) -> Few | None:
        """All of a batch that this rank alone has, if they are in one piece, of one block, and at most so many."""
        ...

    def normal(self) -> Sequence[Normal]:
        """What Gram matrices say of this rank's rows, for each block."""
        ...

    def value_and_gradient(self, weights: torch.Tensor) -> tuple[float, Vector]:
        """The objective with ``weights`` (t, m) in the last layer, and its gradient in all other variables.

        The features are those that ``rows`` gave. The gradient is a new vector (n,), 0 in the place of the last layer.
        *Collective*, one reduction.
        """
        ...


class Separable(Protocol):
    """A model whose last layer is linear, and the ranks that share its samples.

    Attributes:
        width: m.
        outputs: t.
        blocks: the columns of each block, int64; where there is a bias, its column is the last of each.
        widths: how many these are.
        columns: the same as numbers, without that of the bias.
        bias: whether there is one.
        alone: whether there is one rank only.
    """

    width: int
    outputs: int
    blocks: Sequence[torch.Tensor]
    widths: tuple[int, ...]
    columns: tuple[tuple[int, ...], ...]
    bias: bool
    alone: bool

    def weights(self, w: Vector) -> torch.Tensor:
        """The last layer's part of a vector (n,) as W (t, m), float64 on the CPU, a copy."""
        ...

    def put(self, w: Vector, weights: torch.Tensor) -> None:
        """Write W (t, m) into a vector (n,)."""
        ...

    def decay(self, w: Vector) -> float:
        """What weight decay adds to the objective at w (n,)."""
        ...

    def features(self, w: Vector, batch: Batch, weights: torch.Tensor) -> Features:
        """The features of a batch at w (n,), and residuals with ``weights`` (t, m). *Collective* at first."""
        ...

    def everything(self, w: Vector) -> Features:
        """The features of all training samples at w (n,), as they are evaluated; residuals are -C. *Collective*.

        They cannot be differentiated.
        """
        ...

    def sum(self, buffer: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks of a float64 buffer, in place. *Collective*."""
        ...

    def combine(self, buffer: torch.Tensor, by: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """All ranks' float64 vectors combined by an associative operation, lower ranks first. *Collective*."""
        ...

    def gather(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The rows (k, columns) of all ranks for each part; k may differ from rank to rank. *Collective*, two calls."""
        ...

    def settle(self, buffer: torch.Tensor) -> torch.Tensor:
        """Rank 0's numbers on all ranks, in place. *Collective*."""
        ...


class SeparableObjective(Objective, Protocol):
    """An objective of a model whose last layer is linear, with the squared loss."""

    @property
    def separable(self) -> Separable:
        """The model as features and a last layer. *Collective* when first asked for.

        Raises:
            UsageError: on all ranks, when the last layer is not linear or the loss is another one.
        """
        ...
