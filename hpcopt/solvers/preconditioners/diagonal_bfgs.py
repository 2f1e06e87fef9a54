"""A diagonal h of the Hessian from differences of gradients: the diagonal of the dense BFGS update of diag(h).

    h <- h - (h s)^2 / s^T diag(h) s + y^2 / s^T y;   P = 1 / h

with s how far w moved and y how the gradient changed (Nocedal and Wright 2006, eq. 6.19; the zero-memory case of
PETSc's MATLMVMDIAGBRDN). Two forms: one that takes pairs of the same batch, true displacements, and holds h within
bounds, and the one of the code released with arXiv 1812.02886, by formulas (apple/ml-ncg, commit 563b5e5).
Shapes: n parameters of this rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hpcopt.kernels.sweeps import Pair, learn, pieces
from hpcopt.objective.protocol import Batch, Objective, Vector
from hpcopt.solvers.products import totals
from hpcopt.solvers.solver import State

ANGLE = 0.1
"""A pair is used where y^T s is at least this part of |y| |s|."""

WEIGHT = 0.1
"""Weight of the update in the moving average of h."""

SPREAD = 100.0
"""h stays within its mean over and times this."""

EPSILON = 1e-8
"""Of the released code: least y^T s and s^T diag(h) s, and what is added to numerators and denominators."""


@dataclass(frozen=True, kw_only=True)
class DiagonalBFGS:
    """h is a moving average of updates by pairs of the same batch, and within a factor of its mean."""

    wants_pairs: ClassVar[bool] = True

    def init(self, objective: Objective, parameters: Vector) -> State:
        """A diagonal of ones, and the number of pairs that are in it."""
        return {"hessian": torch.ones_like(parameters), "hessian_pairs": 0}

    def begin(self, objective: Objective, state: State, batch: Batch) -> None:
        """Nothing."""

    def end(self, objective: Objective, state: State, pending: Any, damping: float) -> None:
        """Nothing: h has its own bounds."""

    def apply(self, state: State, vector: Vector) -> Vector:
        """Divide by h: a new vector."""
        return vector / state["hessian"]

    def observe(self, objective: Objective, state: State, step: Vector, change: Vector) -> None:
        """Take in a pair, unless its curvature is too small or not finite. *Collective*, one small reduction."""
        hessian: Vector = state["hessian"]  # type: ignore[assignment]
        sums = totals(objective, [self._sums(*cut) for cut in pieces(step, change, hessian)])
        ys, ss, yy, shs, hshs, trace, count = sums
        if not (math.isfinite(yy) and min(ys, ss, shs) > 0 and ys >= ANGLE * math.sqrt(ss) * math.sqrt(yy)):
            return
        if state["hessian_pairs"] == 0:
            # The size of the curvature is not known before; as in L-BFGS (Nocedal and Wright 2006, eq. 7.20).
            scale = yy / ys
            hessian.fill_(scale)
            shs, hshs, trace = scale * ss, scale * scale * ss, scale * count
        state["hessian_pairs"] = int(state["hessian_pairs"]) + 1
        mean = (trace + WEIGHT * (yy / ys - hshs / shs)) / count
        for s, y, h in pieces(step, change, hessian):
            hs = h * s
            h.addcmul_(hs, hs, value=-WEIGHT / shs).addcmul_(y, y, value=WEIGHT / ys)
            h.clamp_(mean / SPREAD, mean * SPREAD)

    def restart(self, objective: Objective, state: State) -> None:
        """The next pair sets h anew."""
        state["hessian"].fill_(1.0)  # type: ignore[union-attr]
        state["hessian_pairs"] = 0

    @staticmethod
    def _sums(s: Vector, y: Vector, h: Vector) -> list[torch.Tensor]:
        hs = h * s
        return [
            *(torch.dot(*pair) for pair in ((y, s), (s, s), (y, y), (s, hs), (hs, hs))),
            h.sum(),
            s.new_tensor(len(s)),
        ]


@dataclass(frozen=True, kw_only=True)
class ReleasedDiagonalBFGS:
    """The form of the released code: gradients of two batches make y, and s is the scheduled step."""

    wants_pairs: ClassVar[bool] = False

    def init(self, objective: Objective, parameters: Vector) -> State:
        """A diagonal of ones."""
        return {"hessian": torch.ones_like(parameters)}

    def begin(self, objective: Objective, state: State, batch: Batch) -> None:
        """Nothing."""

    def end(self, objective: Objective, state: State, pending: Any, damping: float) -> None:
        """Nothing."""

    def apply(self, state: State, vector: Vector) -> Vector:
        """Divide by h + epsilon: a new vector."""
        return vector / (state["hessian"] + EPSILON)

    def observe(self, objective: Objective, state: State, step: Vector, change: Vector) -> None:
        """Take in a pair. *Collective*, one small reduction."""
        hessian: Vector = state["hessian"]  # type: ignore[assignment]
        cuts = pieces(step, change, hessian)
        ys, shs = totals(objective, [[torch.dot(y, s), torch.dot(s, h * s)] for s, y, h in cuts])
        if self.usable(ys, shs):
            for s, y, h in pieces(step, change, hessian):
                learn(h, s, y, self.pair(1.0, ys, shs))

    def restart(self, objective: Objective, state: State) -> None:
        """Forget all pairs."""
        state["hessian"].fill_(1.0)  # type: ignore[union-attr]

    @staticmethod
    def usable(ys: float, shs: float) -> bool:
        """Whether a pair with these y^T s and s^T diag(h) s is taken in."""
        return ys >= EPSILON and shs >= EPSILON

    @staticmethod
    def pair(scale: float, ys: float, shs: float) -> Pair:
        """How h learns from y and s = ``scale`` d, for y^T s and s^T diag(h) s.

        h <- |h - ((h s)^2 + epsilon) / (shs + epsilon) + (y^2 + epsilon) / (ys + epsilon)|
        """
        per_bend, per_change = 1 / (shs + EPSILON), 1 / (ys + EPSILON)
        return Pair(scale, per_bend, per_change, EPSILON * (per_change - per_bend))
