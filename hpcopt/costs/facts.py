"""What the formulas of a method need to know of a model and its samples, from an objective on any number of ranks."""

from __future__ import annotations

from typing import Any

from hpcopt.costs.methods import Case, Design
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.triangles import triangle_size


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


def _factors(objective: DataParallelObjective, solver: Any) -> tuple[int, int] | None:
    """Numbers of the Kronecker factors with their counts, and of their inverses, each with whether it succeeded."""
    wanted = getattr(solver, "preconditioner", "none")
    if wanted not in ("auto", "kronecker"):
        return None
    curvature = objective.kronecker
    if not curvature.offers(getattr(solver, "fisher", "true")):
        return None
    inverses = sum(triangle_size(layer.inputs) + triangle_size(layer.outputs) + 1 for layer in curvature.layers)
    return curvature.size + 2 * len(curvature.layers) + 1, inverses


def _design(objective: DataParallelObjective) -> Design:
    separable = objective.separable
    widths = tuple(len(columns) for columns in separable.blocks)
    weights = separable.outputs * separable.width
    return Design(widths, separable.outputs, weights, max(1, separable.layer.positions))
