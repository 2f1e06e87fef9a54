"""QR factorisation of tall matrices whose rows lie on many ranks, with the right-hand sides carried along.

    Z = Q R11,   R12 = Q^T B,   tail = |B|^2 - |R12|^2,   so that  |B - Z X|^2 = |R12 - R11 X|^2 + tail

for every X: a state (R11, R12, tail) tells all that least squares need to know of Z and B, and two states combine into
that of both sets of rows (Demmel, Grigori, Hoemmen and Langou 2008, UCB/EECS-2008-89). No condition number is squared.
With a diagonal of R11 that is not negative the state is unique where Z has full rank, whatever the order of the tree.

Shapes: Z (N, m), B (N, t), R11 (m, m) upper triangular, R12 (m, t); float64 throughout.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Triangle(NamedTuple):
    """What a QR factorisation leaves of rows and right-hand sides.

    Attributes:
        factor: R11 (m, m), upper triangular, its diagonal not negative.
        right: R12 (m, t).
        tail: what no X can explain of the right-hand sides, a sum of squares.
    """

    factor: torch.Tensor
    right: torch.Tensor
    tail: float


def leaf(rows: torch.Tensor, right: torch.Tensor) -> Triangle:
    """The state of ``rows`` Z (N, m) and ``right`` B (N, t); N may be 0, or below m."""
    width = rows.shape[1]
    if len(rows) == 0:
        return Triangle(rows.new_zeros(width, width), right.new_zeros(width, right.shape[1]), 0.0)
    # The factor of [Z B] holds R11, R12 and below them what Z does not explain of B.
    factor = torch.linalg.qr(torch.cat([rows, right], dim=1), mode="r").R
    factor = factor * torch.where(factor.diagonal() < 0, -1.0, 1.0).to(factor)[:, None]
    top = torch.nn.functional.pad(factor[:width], (0, 0, 0, max(0, width - len(factor))))
    return Triangle(top[:, :width].contiguous(), top[:, width:].contiguous(), float(factor[width:].square().sum()))


def combine(first: Triangle, second: Triangle) -> Triangle:
    """The state of both sets of rows."""
    both = leaf(torch.cat([first.factor, second.factor]), torch.cat([first.right, second.right]))
    return Triangle(both.factor, both.right, both.tail + first.tail + second.tail)


def packed_size(width: int, outputs: int) -> int:
    """Numbers in a packed state: m (m + 1) / 2 + m t + 1."""
    return width * (width + 1) // 2 + width * outputs + 1


def pack(state: Triangle) -> torch.Tensor:
    """A state as one vector."""
    width = len(state.factor)
    upper = state.factor[tuple(torch.triu_indices(width, width))]
    return torch.cat([upper, state.right.reshape(-1), state.right.new_tensor([state.tail])])


def unpack(packed: torch.Tensor, width: int, outputs: int) -> Triangle:
    """The state that ``pack`` made one vector of."""
    upper, right, tail = packed.split([width * (width + 1) // 2, width * outputs, 1])
    factor = packed.new_zeros(width, width)
    factor[tuple(torch.triu_indices(width, width))] = upper
    return Triangle(factor, right.reshape(width, outputs).clone(), float(tail))
