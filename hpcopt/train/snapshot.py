"""All that a run needs to go on as if it had not been interrupted, as the contents of a checkpoint and back.

What is the same on all ranks can be restored on any number of them. What is a rank's own (its part of the method's
state, running statistics) is restored where as many ranks go on, in the same layout.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch

from hpcopt.checkpoint.names import BEST, LOOP, MODEL, SOLVER, in_group, tensor_name, tensor_path
from hpcopt.checkpoint.restore import restore
from hpcopt.checkpoint.stored import StoredCheckpoint
from hpcopt.errors import UsageError
from hpcopt.objective.problem import Model, Problem
from hpcopt.objective.protocol import Vector, Work
from hpcopt.solvers.solver import SMALL_TENSORS, Solver, State
from hpcopt.train.evaluation import Metrics
from hpcopt.train.sampler import Sampler
from hpcopt.train.standing import Standing

logger = logging.getLogger(__name__)

BUFFERS = "buffers"
WHOLE = ("iteration", "bytes", "accepted", "rejected")
"""Columns of the history that hold whole numbers."""

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
    model, found = objective.model, _in_group(MODEL, objective.model.tensors())
    if not snapshot.best_is_here:
        found |= _in_group(BEST, model.tensors_at(snapshot.best_parameters, snapshot.best_buffers))
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
    blocks = model.blocks(value) if isinstance(value, torch.Tensor) and key not in SMALL_TENSORS else None
    return {path: value} if blocks is None else _in_group(path, blocks)


def snapshot_from(objective: Problem, solver: Solver, sampler: Sampler, checkpoint: StoredCheckpoint) -> Snapshot:
    """The run as it was saved; the model's tensors that are not trained are put back too. *Collective*.

    Raises:
        UsageError: what was saved is of another model, method or training set, of other options or other batches.
        CheckpointError: a file is missing or damaged.
    """
    restored = restore(objective.comm, checkpoint)
    saved = restored.replicated
    _check_samples(objective, saved[f"{LOOP}/samples"])
    _check_identity(identity(objective, solver, sampler), saved)
    own = restored.own if _same_layout(objective, saved) else None
    point = _load_model(objective, saved)
    state = _load_state(objective, solver, saved, own, point)
    best, buffers = _load_best(objective, saved, point)
    _check_buffers(objective, own)
    if own is not None:
        model = objective.model
        model.restore_buffers([_tensor(own[f"{BUFFERS}/{i}"]) for i in range(len(model.copy_buffers()))])
    return Snapshot(state, point, _load_standing(saved), _group(saved, "batches"), best, buffers, _load_history(saved))


def _in_group(group: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
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


def _check_identity(now: Mapping[str, str], saved: Mapping[str, Any]) -> None:
    before = {key.removeprefix(f"{LOOP}/identity/"): value for key, value in saved.items() if "/identity/" in key}
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            had, has = before.get(key, "nothing"), now.get(key, "nothing")
            raise UsageError(
                f"The run that was saved had {key} = {had}, this one has {has}. A run goes on with what it was begun "
                "with: give it back its value, take another run directory, or start anew with --fresh (in Python "
                "fresh=True), which moves the old run aside.",
                collective=True,
            )


def _check_buffers(objective: Problem, own: Mapping[str, Any] | None) -> None:
    if own is None:
        return
    here = [tuple(buffer.shape) for buffer in objective.model.copy_buffers()]
    names = [name for name in own if name.startswith(f"{BUFFERS}/")]
    there = [tuple(np.shape(own[f"{BUFFERS}/{i}"])) for i in range(len(names))]
    if here != there:
        raise UsageError(
            f"The checkpoint is of another model: its tensors that are not trained have shapes {there}, here they have "
            f"{here}. Go on with the model it was made with, or start anew with --fresh.",
            collective=True,
        )


def _load_model(objective: Problem, saved: Mapping[str, Any]) -> Vector:
    """Put the saved tensors into the model; returns the point (n,)."""
    tensors = objective.model.tensors()
    known = {tensor_path(MODEL, name) for name in tensors}
    if more := [name for name in in_group(MODEL, saved) if name not in known]:
        raise UsageError(
            f"The checkpoint is of another model: it holds {tensor_name(more[0])}, which this model has not. Go on "
            "with the model it was made with, or start anew with --fresh.",
            collective=True,
        )
    for name, tensor in tensors.items():
        path = tensor_path(MODEL, name)
        if path not in saved or tuple(np.shape(saved[path])) != tuple(tensor.shape):
            shape = "nothing" if path not in saved else f"shape {tuple(np.shape(saved[path]))}"
            raise UsageError(
                f"The checkpoint is of another model: {name} has shape {tuple(tensor.shape)} here, but {shape} there. "
                "Go on with the model it was made with, or start anew with --fresh.",
                collective=True,
            )
    return objective.model.load({name: _tensor(saved[tensor_path(MODEL, name)]) for name in tensors})


def _check_samples(objective: Problem, saved: int) -> None:
    if saved != objective.samples:
        raise UsageError(
            f"The run was made with {saved} training samples, but here are {objective.samples}. Go on with the data it "
            "was made with, or start anew with --fresh.",
            collective=True,
        )


def _load_state(
    objective: Problem,
    solver: Solver,
    saved: Mapping[str, Any],
    own: Mapping[str, Any] | None,
    point: Vector,
) -> State:
    state, left = solver.init(objective), []
    _check_keys(solver, state, saved)
    for key, empty in state.items():
        path = f"{SOLVER}/{key}"
        if is_own(solver, key):
            if own is None or path not in own:
                left.append(key)
                continue
            state[key] = _like(empty, own[path], key)
        else:
            state[key] = _like(empty, saved[path], key) if path in saved else point.clone()
    if left:
        # What is known of the present point is known of each rank too, or not at all.
        state["known"] = False
        logger.warning(
            "Another number of ranks, or another layout, goes on: what each rank remembered (%s) starts anew.",
            ", ".join(left),
        )
    return state


def _check_keys(solver: Solver, state: State, saved: Mapping[str, Any]) -> None:
    wanted = {key for key in state if not is_own(solver, key)} | {"parameters"}
    there = {name.removeprefix(f"{SOLVER}/") for name in saved if name.startswith(f"{SOLVER}/")} | {"parameters"}
    if wanted != there:
        raise UsageError(
            f"The checkpoint is of another method, or of other options of it: its state holds {_words(there - wanted)} "
            f"and lacks {_words(wanted - there)}. Go on with the options it was made with, or start anew with --fresh.",
            collective=True,
        )


def _words(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "nothing more"


def _like(empty: torch.Tensor | float | int | bool, value: Any, key: str) -> torch.Tensor | float | int | bool:
    """A saved value in the type, precision and device that the method uses."""
    if not isinstance(empty, torch.Tensor):
        return type(empty)(value)
    if tuple(empty.shape) != tuple(np.shape(value)):
        raise UsageError(
            f"The checkpoint is of other options of the method: {key} has shape {tuple(empty.shape)} here, but "
            f"{tuple(np.shape(value))} there. Go on with the options it was made with, or start anew with --fresh.",
            collective=True,
        )
    # In memory of torch's own, whose alignment the last bits of a product may depend on.
    return empty.clone().copy_(_tensor(value))


def _tensor(value: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(value)).reshape(np.shape(value))


def _load_best(objective: Problem, saved: Mapping[str, Any], point: Vector) -> tuple[Vector, list[torch.Tensor]]:
    model = objective.model
    best = {tensor_name(path): _tensor(saved[path]) for path in in_group(BEST, saved)}
    return model.read(best) if best else (point.clone(), model.copy_buffers())


def _load_standing(saved: Mapping[str, Any]) -> Standing:
    values: dict[str, Any] = {name: saved[f"{LOOP}/{name}"] for name in COUNTS}
    values |= {name: Metrics(**_group(saved, name)) for name in ("initial", "latest", "best")}
    return Standing(**values, work=Work(**_group(saved, "work")))


def _group(saved: Mapping[str, Any], name: str) -> dict[str, Any]:
    prefix = f"{LOOP}/{name}/"
    return {path.removeprefix(prefix): value for path, value in saved.items() if path.startswith(prefix)}


def _load_history(saved: Mapping[str, Any]) -> list[dict[str, float]]:
    columns = saved[f"{LOOP}/{HISTORY}/columns"].split()
    rows = [dict(zip(columns, row, strict=True)) for row in saved[f"{LOOP}/{HISTORY}/rows"].tolist()]
    for row in rows:
        row |= {name: int(row[name]) for name in WHOLE if name in row}
    return rows


def _same_layout(objective: Problem, saved: Mapping[str, Any]) -> bool:
    return all(saved.get(f"{LOOP}/{key}") == str(value) for key, value in objective.layout.items())
