"""All that a run needs to go on as if it had not been interrupted, as the contents of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch

from hpcopt.checkpoint.names import BEST, LOOP, MODEL, SOLVER, tensor_path
from hpcopt.objective.problem import Model, Problem
from hpcopt.objective.protocol import Vector
from hpcopt.solvers.solver import OTHER_TENSORS, Solver, State
from hpcopt.train.sampler import Sampler
from hpcopt.train.standing import Standing

BUFFERS = "buffers"
HISTORY = "history"
COUNTS = (
    "iterations",
    "accepted",
    "rejected",
    "not_finite",
    "batch",
    "seconds",
    "wall_seconds",
    "calls",
    "bytes_moved",
    "seconds_waited",
    "best_epoch",
    "best_iteration",
    "method_stop",
)
"""Plain values of ``Standing``."""


@dataclass
class Snapshot:
    """A run between two iterations.

    Attributes:
        state: the method's.
        point: what the run delivers now (n,): w, or what the method delivers instead.
        standing: what the loop has counted.
        batches: where the run stands in its batches.
        best_parameters: the best point so far (n,).
        best_buffers: the model's other tensors there.
        history: the rows of all evaluations.
    """

    state: State
    point: Vector
    standing: Standing
    batches: Mapping[str, int | float]
    best_parameters: Vector
    best_buffers: list[torch.Tensor]
    history: list[dict[str, float]]

    @property
    def best_is_here(self) -> bool:
        """Whether no point has been better than the present one."""
        return self.standing.best_iteration == self.standing.iterations

    @property
    def delivers_best(self) -> bool:
        """Whether ``point`` is the best point, because it is the present one or because the run diverged."""
        return self.best_is_here or self.point is self.best_parameters


def replicated_contents(objective: Problem, solver: Solver, sampler: Sampler, snapshot: Snapshot) -> dict[str, Any]:
    """What is the same on all ranks, by its name in a checkpoint. The module must hold ``snapshot.point``."""
    model, found = objective.model, in_group_of(MODEL, objective.model.tensors())
    if not snapshot.best_is_here:
        found |= in_group_of(BEST, model.tensors_at(snapshot.best_parameters, snapshot.best_buffers))
    for key, value in snapshot.state.items():
        if not is_own(solver, key) and not (key == "parameters" and value is snapshot.point):
            found |= spread(model, key, value)
    found |= {f"{LOOP}/{name}": getattr(snapshot.standing, name) for name in COUNTS}
    for name in ("initial", "latest", "best", "work"):
        found |= {f"{LOOP}/{name}/{k}": v for k, v in asdict(getattr(snapshot.standing, name)).items()}
    found |= {f"{LOOP}/batches/{key}": value for key, value in snapshot.batches.items()}
    found |= {f"{LOOP}/{key}": str(value) for key, value in objective.layout.items()}
    found[f"{LOOP}/samples"] = objective.samples
    found |= {f"{LOOP}/identity/{key}": value for key, value in identity(objective, solver, sampler).items()}
    columns = list(snapshot.history[0]) if snapshot.history else []
    found[f"{LOOP}/{HISTORY}/columns"] = " ".join(columns)
    rows = [[row[name] for name in columns] for row in snapshot.history]
    found[f"{LOOP}/{HISTORY}/rows"] = np.array(rows, dtype=np.float64).reshape(len(rows), len(columns))
    return found


def own_contents(running: Sequence[torch.Tensor], solver: Solver, snapshot: Snapshot) -> dict[str, Any]:
    """What is this rank's own: its part of the method's state, and what its module's buffers hold as the run goes."""
    own = {f"{SOLVER}/{key}": value for key, value in snapshot.state.items() if is_own(solver, key)}
    return own | {f"{BUFFERS}/{i}": buffer for i, buffer in enumerate(running)}


def descriptions(solver: Solver) -> dict[str, dict[str, str]]:
    """Units and meanings of contents whose names do not say them."""
    meanings = {
        f"{SOLVER}/radius": "trust-region radius",
        f"{SOLVER}/parameters": "w, where the next iteration starts (the model group holds what the run delivers)",
        f"{SOLVER}/gradient": "gradient at w",
        f"{SOLVER}/pairs": "rows s, y, s, y, ... of the quasi-Newton model's pairs",
        f"{SOLVER}/gram": "inner products of the rows of pairs",
        f"{SOLVER}/factors": "lower triangles of A and G by rows, layer after layer, then the diagonal of the rest",
        f"{SOLVER}/factor_inverses": "inverses of the damped A and G, whole, layer after layer, then of the diagonal",
        f"{SOLVER}/factor_layers": "first number of weight and bias (-1: none) in w, orders of A and G",
        f"{LOOP}/{HISTORY}/rows": "one row an evaluation, columns as in 'columns'",
        f"{LOOP}/batches/number": "batches done in this epoch",
        f"{LOOP}/best_iteration": "iteration of the best evaluation so far",
    }
    seconds = {f"{LOOP}/{name}": {"unit": "s", "meaning": ""} for name in ("seconds", "wall_seconds", "seconds_waited")}
    return {name: {"unit": "1", "meaning": meaning} for name, meaning in meanings.items()} | seconds


def is_own(solver: Solver, key: str) -> bool:
    """Whether an entry of the method's state differs from rank to rank."""
    return key.startswith(getattr(solver, "OWN_STATE", ()))


def spread(model: Model, key: str, value: Any) -> dict[str, Any]:
    """An entry of the method's state by its names in a checkpoint: in blocks where the variables are partitioned."""
    path = f"{SOLVER}/{key}"
    stored = model.stored(value) if isinstance(value, torch.Tensor) and key not in OTHER_TENSORS else value
    return in_group_of(path, stored) if isinstance(stored, dict) else {path: stored}


def in_group_of(group: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of a model by their names in a checkpoint."""
    return {tensor_path(group, name): tensor for name, tensor in tensors.items()}


def identity(objective: Problem, solver: Solver, sampler: Sampler) -> dict[str, str]:
    """What makes two runs the same besides the shapes of their states: options of method, objective and batches."""
    names = [field.name for field in fields(solver)] if is_dataclass(solver) else list(vars(solver))
    options = {name: getattr(solver, name) for name in names if name != "horizon_epochs"}
    plan = sampler.plan
    found = {f"solver.{key}": repr(value) for key, value in options.items() if _is_plain(value)}
    found |= {"solver": type(solver).__name__, "loss.weight_decay": repr(float(objective.weight_decay))}
    return found | {"seed": repr(plan.seed), "data.batch": repr(plan.batch), "data.overlap": repr(float(plan.overlap))}


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, tuple))
