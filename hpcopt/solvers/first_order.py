"""What every step that follows one gradient begins with."""

from __future__ import annotations

import math

from hpcopt.objective.protocol import Batch, Objective, Vector
from hpcopt.solvers.agreement import agreed_dot
from hpcopt.solvers.solver import State, StepReport


def evaluate(objective: Objective, state: State, batch: Batch, rate: float) -> tuple[Vector, StepReport]:
    """The gradient (n,) at the state's parameters, and the report of a step of that rate. *Collective*.

    The norm of the gradient, one pass over it, doubles as the check for numbers that are not finite. The length of the
    step would cost another pass and is left as NaN; it is 0 in the report of a step that is rejected.
    """
    loss, gradient = objective.value_and_gradient(state["parameters"], batch)  # type: ignore[arg-type]
    norm = math.sqrt(agreed_dot(objective, gradient, gradient))
    finite = math.isfinite(loss) and math.isfinite(norm)
    report = StepReport(loss, gradient_norm=norm, step_norm=math.nan, step_size=rate, accepted=finite, finite=finite)
    if not finite:
        report.step_norm = 0.0
    return gradient, report
