"""What the formulas of a method need to know of a model and its samples, from an objective on any number of ranks."""

from __future__ import annotations

from typing import Any

from hpcopt.costs.methods import Case, Design, Factors
from hpcopt.objective.curvature.triangles import triangle_size
from hpcopt.objective.data_parallel import DataParallelObjective


def case_of(
    objective: DataParallelObjective, solver: Any, batch: int, *, per_epoch: int = 1, trials: float = 1.0
) -> Case:
    """The facts of a method on a model. *Collective*.

    Args:
        objective: the problem, its variables on every rank.
        solver: the method.
        batch: samples of a batch over all ranks.
        per_epoch: iterations of an epoch.
        trials: points that a line search tries; products of conjugate gradients.
    """
    return Case(
        whole=per_epoch == 1 and objective.deterministic,
        batch=batch,
        per_epoch=per_epoch,
        trials=trials,
        matrices=sum(len(shape) > 1 for _, shape in objective.parameter_tensors()),
        factors=_factors(objective, solver),
        design=_design(objective) if hasattr(solver, "theta_solver") else None,
    )


def _factors(objective: DataParallelObjective, solver: Any) -> Factors | None:
    wanted = getattr(solver, "preconditioner", "none")
    if wanted not in ("auto", "kronecker"):
        return None
    curvature = objective.kronecker
    if not curvature.offers(getattr(solver, "fisher", "true")):
        return None
    orders = tuple((layer.inputs, layer.outputs) for layer in curvature.layers)
    inverses = sum(triangle_size(a) + triangle_size(o) + 1 for a, o in orders)
    spent, gradient = sum(2 * a * o + o * o + a * a for a, o in orders), sum(3 * a * o for a, o in orders)
    return Factors(curvature.size + 2 * len(orders) + 1, inverses, orders, spent / gradient)


def _design(objective: DataParallelObjective) -> Design:
    separable, layer = objective.separable, objective.separable.layer
    widths = tuple(len(columns) for columns in separable.blocks)
    weights = separable.outputs * separable.width
    return Design(widths, separable.outputs, weights, max(1, layer.positions), layer.operations)
