"""The limited-memory SR1 matrix in compact form.

    B = gamma I + Psi M^{-1} Psi^T,   Psi = Y - gamma S,   M = D + L + L^T - gamma S^T S

with D the diagonal and L the strictly lower triangle of S^T Y (Byrd, Nocedal and Schnabel 1994, theorem 5.1; Nocedal
and Wright 2006, eq. 7.31). It may be indefinite: that is the point of it in a trust region.
Shapes: n parameters, m pairs at most, k pairs stored.
"""

from __future__ import annotations

import torch

from hpcopt.linalg.compact import CompactModel
from hpcopt.linalg.pairs import PairMemory

SKIP = 1e-8
"""A pair is skipped when |s^T (y - B s)| < SKIP |s| |y - B s| (Nocedal and Wright 2006, eq. 6.26)."""

SINGULAR = 1e-10
"""M counts as singular when its smallest singular value, for unit columns of Psi, is below this part of the largest."""


def lsr1_model(memory: PairMemory, gamma: float) -> CompactModel:
    """The L-SR1 matrix of the pairs in ``memory`` with B_0 = gamma I.

    Pairs that gamma I already explains (y = gamma s to rounding) are left out, and where M is singular all the same
    (dropping an old pair or changing gamma can make it so) the oldest ones until it is not. They stay in the memory.
    """
    ss, sy, yy = memory.blocks()
    psi = yy - gamma * (sy + sy.T) + gamma * gamma * ss
    middle = torch.tril(sy) + torch.tril(sy, -1).T - gamma * ss
    rounding = 10 * torch.finfo(memory.rows.dtype).eps
    telling = psi.diagonal() > rounding * (yy.diagonal() + gamma * gamma * ss.diagonal())
    used = telling.nonzero().flatten().tolist()
    scale = psi.diagonal()[used].rsqrt()
    while used and not _regular(scale[:, None] * middle[used][:, used] * scale):
        used, scale = used[1:], scale[1:]
    columns = torch.zeros(len(memory.gram), len(used), dtype=torch.float64)
    for column, index in enumerate(used):
        slot = memory.slots[index]
        columns[2 * slot, column], columns[2 * slot + 1, column] = -gamma, 1.0
    return CompactModel(gamma, columns, torch.linalg.inv(middle[used][:, used]))


def _regular(matrix: torch.Tensor) -> bool:
    singular = torch.linalg.svdvals(matrix)
    return bool(singular[-1] > SINGULAR * singular[0])


def lsr1_accepts(memory: PairMemory, model: CompactModel) -> bool:
    """Whether the pair in the free slot of ``memory`` may update ``model``: the denominator of SR1 is safe.

    A pair that the model already explains (y = B s to rounding) is not accepted either: it says nothing new.
    """
    s = torch.zeros(len(memory.gram), dtype=torch.float64)
    s[2 * memory.free] = 1.0
    residual = -model.product(s, memory.gram)
    residual[2 * memory.free + 1] += 1.0
    seen = memory.gram @ residual
    length = max(float(residual @ seen), 0.0) ** 0.5 * float(s @ memory.gram @ s) ** 0.5
    denominator = abs(float(s @ seen))
    return denominator >= SKIP * length and denominator > 0
