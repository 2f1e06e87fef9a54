"""The diagonal of the Gauss-Newton matrix G by random probes: the mean of v * (G v) over vectors v of signs.

Its expectation is diag(G) (Bekas, Kokiopoulou and Saad 2007, doi:10.1016/j.apnum.2007.01.003, after Hutchinson); the
moving average is that of AdaHessian (Yao et al. 2021, arXiv 2006.00719). Signs are drawn by counters for the place of a
variable in the whole, so that they are the same however variables and samples are spread over ranks.
Shapes: n parameters of this rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hpcopt.objective.protocol import Batch, Objective, Vector
from hpcopt.solvers.products import products
from hpcopt.solvers.solver import State

SAMPLES = 2000
"""Most samples in the G of a refresh; another subset in each."""

FIRST = 5
"""The estimate is refreshed in each of the first steps, then in every ``PERIOD``-th."""

PERIOD = 5

KEPT = 0.9
"""Weight of the past in the moving average; in the first steps that of a plain mean."""

SPREAD = 100.0
"""What the estimate is raised to where it is smaller: its mean over this. A mean of few probes may be negative."""


@dataclass(frozen=True, kw_only=True)
class GaussNewtonDiagonal:
    """P = 1 / (D + damping) with D a moving average of estimates, all above 0."""

    wants_pairs: ClassVar[bool] = False

    def init(self, objective: Objective, parameters: Vector) -> State:
        """D and its mean, the number of steps, and that of estimates in D."""
        return {
            "diagonal": torch.zeros_like(parameters),
            "diagonal_mean": 1.0,
            "diagonal_damping": 0.0,
            "diagonal_steps": 0,
            "diagonal_probes": 0,
        }

    def begin(self, objective: Objective, state: State, batch: Batch) -> None:
        """One probe, where it is time for one: one product. *Collective*. A probe that is not finite is left out."""
        step = int(state["diagonal_steps"])
        state["diagonal_steps"] = step + 1
        if step >= FIRST and step % PERIOD:
            return
        samples = batch if batch.total <= SAMPLES else objective.subset(batch, SAMPLES, step)
        v = objective.signs(step)
        curved = objective.linearize(state["parameters"], samples).gauss_newton(v)  # type: ignore[arg-type]
        trace, size, square = products(objective, [(v, curved), (v, v), (curved, curved)])
        if not (math.isfinite(square) and trace > 0):
            return
        probes = state["diagonal_probes"] = int(state["diagonal_probes"]) + 1
        weight = max(1 - KEPT, 1 / probes)
        state["diagonal"].lerp_(curved.mul_(v), weight)  # type: ignore[union-attr]
        # The mean of D: of signs every square is 1, so that v^T G v is the sum of the estimate.
        state["diagonal_mean"] = (1 - weight) * float(state["diagonal_mean"]) + weight * trace / size

    def end(self, objective: Objective, state: State, pending: Any, damping: float) -> None:
        """Note the damping."""
        state["diagonal_damping"] = damping

    def apply(self, state: State, vector: Vector) -> Vector:
        """Divide by D + damping: a new vector."""
        if not state["diagonal_probes"]:
            return vector.clone()
        diagonal: Vector = state["diagonal"]  # type: ignore[assignment]
        raised = diagonal.clamp(min=float(state["diagonal_mean"]) / SPREAD)
        return torch.div(vector, raised.add_(float(state["diagonal_damping"])), out=raised)

    def observe(self, objective: Objective, state: State, step: Vector, change: Vector) -> None:
        """Nothing."""

    def restart(self, objective: Objective, state: State) -> None:
        """The next probe starts the average anew."""
        state["diagonal_probes"] = state["diagonal_steps"] = 0
