"""Conjugate directions with a scheduled step length that follows the loss: one gradient a step and no search.

    d <- -P g + beta d;   w <- w + rate base d

After the code released with Adya, Palakkode and Tuzel 2018, arXiv 1812.02886 (apple/ml-ncg, commit 563b5e5), of which
the preset "paper" is the algorithm by formulas: gradients of successive batches make the pairs of a diagonal BFGS
preconditioner, s is the scheduled step in the unedited direction, epsilon stands in numerators too, and nothing asks
whether d is descent. Other preconditioners and ``safeguards`` make it robust.

Numbers read or written beyond gradient and reduction, in sweeps that read their vectors once (the released form with
fr): 2 n for g^T g and g^T d, 7 n for h and P g = z (g, g_prev, d, h; h, g_prev and, in g's memory, z are written), 5 n
for d and w (z, d, w; d and w are written). What the update of h needs besides, d^T g_prev and d^T diag(h) d, follows
from products of the step before, since d = beta d_prev - z_prev: those of the second sweep, which has d, z and h. The
scalars in between are two packs: small reductions where variables are partitioned, broadcasts where w is replicated.
Other preconditioners know P before the pair of this step, and all their products are one pack.
Shapes: n parameters of this rank.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch

from hpcopt.kernels.choice import sweeps_on
from hpcopt.linalg.conjugacy import Pack, conjugacy
from hpcopt.objective.protocol import Batch, Objective, Vector
from hpcopt.solvers.conjugate.step_control import StepControl
from hpcopt.solvers.lars import scale_layers
from hpcopt.solvers.preconditioners.diagonal_bfgs import EPSILON, ReleasedDiagonalBFGS
from hpcopt.solvers.preconditioners.protocol import Preconditioner
from hpcopt.solvers.products import totals
from hpcopt.solvers.solver import State, StepReport

if TYPE_CHECKING:
    from hpcopt.solvers.nlcg import NLCG

DESCENT = 0.01
"""A direction counts as descent when -g^T d is above this part of g^T P g (scipy's ``fmin_cg``, there with P = I)."""

LAYER_DECAY = 0.1
"""Of the released layer-wise scaling: what is added to |g| for each ``layer_trust`` |w|."""

PAIR_PERIOD = 5
"""A preconditioner that wants pairs of the same batch gets one in every so many steps, for a second gradient each."""

RATE_DROP = 0.5
"""A rate below this part of the last one is a drop, after which the previous direction is of another scale."""


class ControlledDirections:
    """The step rule "control".

    Args:
        options: of the method.
        preconditioner: P.
    """

    def __init__(self, options: NLCG, preconditioner: Preconditioner) -> None:
        self._options, self._preconditioner = options, preconditioner
        self._control = StepControl(options.control, options.control_tolerance)
        self._released = isinstance(preconditioner, ReleasedDiagonalBFGS)
        self._keeps_z = self._released and options.beta in ("pr", "hs", "hz")

    def init(self, objective: Objective) -> State:
        """Parameters, the previous direction and gradient, what the control of the step length keeps, and P's own."""
        parameters = objective.initial_vector()
        state: State = {
            "parameters": parameters,
            "direction": torch.zeros_like(parameters),
            "previous_gradient": torch.zeros_like(parameters),
            "gradient_square": 0.0,
            "previous_product": 0.0,
            "previous_rate": 0.0,
            "steps": 0,
            "restart": True,
        }
        if self._released:
            state |= {"slope": 0.0, "curvature": 0.0}
        if self._keeps_z:
            state["previous_preconditioned"] = torch.zeros_like(parameters)
        if self._options.weight_average:
            state["average"] = parameters.clone()
        return state | self._control.init() | self._preconditioner.init(objective, parameters)

    def step(self, objective: Objective, state: State, batch: Batch) -> tuple[State, StepReport]:
        """One update. *Collective*, one reduction of n numbers. What is not finite leaves w untouched."""
        parameters: Vector = state["parameters"]  # type: ignore[assignment]
        rate = self._options.rate(batch.position)
        pending = self._preconditioner.begin(objective, state, batch)
        loss, gradient = objective.value_and_gradient(parameters, batch)
        self._preconditioner.end(objective, state, pending, self._options.damping)
        pair = self._preconditioner.wants_pairs and int(state["steps"]) % PAIR_PERIOD == 0
        before = (parameters.clone(), gradient.clone()) if pair else None
        self._scale(objective, parameters, gradient)
        z, (gg, gd, dy, dd, gz, zy, yz) = self._measure(objective, state, gradient)
        finite = math.isfinite(loss) and math.isfinite(gg)
        report = StepReport(loss, gradient_norm=math.sqrt(gg) if finite else math.nan, step_norm=math.nan)
        if not finite:
            state["restart"] = bool(state["restart"]) or self._options.safeguards
            return state, replace(report, step_norm=0.0, accepted=False, finite=False)
        if z is None:
            z, (gz, zy, yz, *bends) = self._precondition(objective, state, gradient, rate * float(state["base"]), dy)
        else:
            cast(Vector, state["previous_gradient"]).copy_(gradient)
            bends = []
        gz_before, gg_before = float(state["previous_product"]), float(state["gradient_square"])
        beta = self._beta(state, Pack(gz, gz_before, zy, dy, gd, yz, dd, gg_before), rate)
        state |= {"gradient_square": gg, "previous_product": gz, "previous_rate": rate}
        if bends:  # of the next direction, beta d - z, with the gradient and the h of now
            curvature = beta * beta * bends[0] - 2 * beta * bends[1] + bends[2]
            state |= {"slope": beta * gd - gz, "curvature": curvature}
        report.step_size = self._move(state, loss, rate, beta, z)
        objective.release(gradient)
        if before is not None:
            self._observe(objective, state, batch, *before)
        return state, report

    def _scale(self, objective: Objective, parameters: Vector, gradient: Vector) -> None:
        """Scale the gradient layer by layer, where that is wished. *Collective*."""
        trust = self._options.layer_trust
        if trust:
            scale_layers(objective, parameters, gradient, trust, LAYER_DECAY * trust, epsilon=EPSILON)

    def _measure(self, objective: Objective, state: State, gradient: Vector) -> tuple[Vector | None, tuple[float, ...]]:
        """P g = z (n,), and all products in one pack: g^T g, g^T d, d^T y, d^T d, g^T z, z^T y, and for hz y^T P y.

        The released form has no z before the first of them: None, and zeros for the others. *Collective*.
        """
        previous, d = cast(Vector, state["previous_gradient"]), cast(Vector, state["direction"])
        sweeps, with_square = sweeps_on(gradient), self._options.beta == "hz"
        if self._released:
            pairs = [(gradient, gradient), (gradient, d), *([(d, d)] if with_square else [])]
            gg, gd, *dd = totals(objective, sweeps.products(pairs))
            return None, (gg, gd, gd - float(state["slope"]), *(dd or [0.0]), 0.0, 0.0, 0.0)
        z = self._preconditioner.apply(state, gradient)
        found = [sweeps.measure(gradient, previous, d, z)]
        if not with_square:
            return z, (*totals(objective, *found), 0.0)
        change = gradient - previous
        found.append(sweeps.products([(change, self._preconditioner.apply(state, change))]))
        return z, tuple(totals(objective, *found))

    def _precondition(
        self, objective: Objective, state: State, gradient: Vector, scale: float, dy: float
    ) -> tuple[Vector, list[float]]:
        """Update h and make z = P g in one sweep; z, g^T z, z^T y, y^T P y and what the next d^T diag(h) d is made of.

        What the released code takes for z^T y is g^T z - g^T z_prev, with the z of the previous P. *Collective*.
        """
        metric, first = ReleasedDiagonalBFGS, int(state["steps"]) == 0
        ys, shs = scale * dy, scale * scale * float(state["curvature"])
        learns, epsilon = not first and metric.usable(ys, shs), 0.0 if first else EPSILON
        previous, d, h = (cast(Vector, state[name]) for name in ("previous_gradient", "direction", "hessian"))
        kept = cast(Vector, state["previous_preconditioned"]) if self._keeps_z else None
        pair = metric.pair(scale, ys, shs) if learns else None
        found = sweeps_on(gradient).precondition(gradient, previous, h, d, kept, pair, epsilon)
        return gradient if kept is None else kept, totals(objective, found)

    def _beta(self, state: State, pack: Pack, rate: float) -> float:
        options = self._options
        restart, state["restart"] = bool(state["restart"]), False
        if restart or (options.safeguards and rate < RATE_DROP * float(state["previous_rate"])):
            return 0.0
        most = 1.0 if options.beta_max is None else options.beta_max
        beta = conjugacy(options.beta, pack, most, EPSILON if self._released else 0.0)
        descends = beta * pack.gd - pack.gz <= -DESCENT * pack.gz
        return beta if descends or not options.safeguards else 0.0

    def _move(self, state: State, loss: float, rate: float, beta: float, z: Vector) -> float:
        """New direction and point, after a part of the last step is taken back; returns the step length."""
        old, steps = rate * float(state["base"]), int(state["steps"])
        undo = self._control.update(state, loss, steps)
        new = rate * float(state["base"])
        undo = undo if new > EPSILON else 0.0
        state["restart"] = self._options.safeguards and undo > 0
        state["steps"] = steps + 1
        # The average of the released code counts steps: (1 + k) / (10 + k), as in TensorFlow.
        leaves = 1 - min(self._options.weight_average, (2 + steps) / (11 + steps))
        d, w = cast(Vector, state["direction"]), cast(Vector, state["parameters"])
        mean = cast(Vector, state["average"]) if self._options.weight_average else None
        sweeps_on(z).move(z, d, w, mean, beta=beta, undo=undo * old, rate=(1 - undo) * new, leaves=leaves)
        return new

    def _observe(self, objective: Objective, state: State, batch: Batch, start: Vector, gradient: Vector) -> None:
        """Show P a pair of this batch: one more gradient, where the step ended. *Collective*."""
        parameters: Vector = state["parameters"]  # type: ignore[assignment]
        _, after = objective.value_and_gradient(parameters, batch)
        self._preconditioner.observe(objective, state, parameters - start, after - gradient)
        objective.release(after)
