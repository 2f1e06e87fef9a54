"""A run as its checkpoint has it, on the ranks that are there now.

What is the same on all ranks can be restored on any number of them, and what is partitioned on any grid. What is a
rank's own (its part of the method's state, running statistics) is restored where as many ranks go on, in the same
layout.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from hpcopt.checkpoint.names import BEST, LOOP, MODEL, SOLVER, in_group, tensor_name, tensor_path
from hpcopt.checkpoint.restore import restore
from hpcopt.checkpoint.stored import StoredCheckpoint
from hpcopt.errors import UsageError
from hpcopt.layout.partitioned import Partitioned
from hpcopt.objective.problem import Model, Problem
from hpcopt.objective.protocol import Vector, Work
from hpcopt.solvers.solver import Solver, State
from hpcopt.train.evaluation import Metrics
from hpcopt.train.sampler import Sampler
from hpcopt.train.snapshot import BUFFERS, COUNTS, HISTORY, Snapshot, identity, in_group_of, is_own, spread
from hpcopt.train.standing import Standing

logger = logging.getLogger(__name__)

WHOLE = ("iteration", "bytes", "accepted", "rejected")
"""Columns of the history that hold whole numbers."""

Value = torch.Tensor | float | int | bool


def snapshot_from(objective: Problem, solver: Solver, sampler: Sampler, checkpoint: StoredCheckpoint) -> Snapshot:
    """The run as it was saved; the model's tensors that are not trained are put back too. *Collective*.

    Raises:
        UsageError: what was saved is of another model, method or training set, of other options or other batches.
        CheckpointError: a file is missing or damaged.
    """
    state, names = solver.init(objective), set(checkpoint.names())
    places = _places(objective, solver, state)
    restored = restore(objective.comm, checkpoint, {name: places[name] for name in names & places.keys()})
    saved = restored.replicated
    _check_samples(objective, saved[f"{LOOP}/samples"])
    _check_identity(identity(objective, solver, sampler), saved)
    own = restored.own if _same_layout(objective, saved) else None
    point = _load_model(objective, saved)
    _load_state(objective, solver, state, saved, own, point)
    best, buffers = _load_best(objective, saved, point)
    _check_buffers(objective, own)
    if own is not None:
        model = objective.model
        model.restore_buffers([_tensor(own[f"{BUFFERS}/{i}"]) for i in range(len(model.copy_buffers()))])
    return Snapshot(state, point, _load_standing(saved), _group(saved, "batches"), best, buffers, _load_history(saved))


def _places(objective: Problem, solver: Solver, state: State) -> dict[str, Partitioned]:
    """Where the blocks of partitioned variables are read to: fresh vectors, and those of ``state`` themselves."""
    model, w = objective.model, objective.initial_vector()
    blocks = [model.blocks(torch.empty_like(w)) for _ in (MODEL, BEST)]
    found: dict[str, Partitioned] = {}
    for group, made in zip((MODEL, BEST), blocks, strict=True):
        found |= in_group_of(group, made or {})
    for key, value in state.items():
        if not is_own(solver, key):
            found |= {name: part for name, part in spread(model, key, value).items() if isinstance(part, Partitioned)}
    return found


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
        if path not in saved or _shape(saved[path]) != _shape(tensor):
            shape = "nothing" if path not in saved else f"shape {_shape(saved[path])}"
            raise UsageError(
                f"The checkpoint is of another model: {name} has shape {_shape(tensor)} here, but {shape} there. "
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
    state: State,
    saved: Mapping[str, Any],
    own: Mapping[str, Any] | None,
    point: Vector,
) -> None:
    """Put what was saved in the place of a fresh state; blocks of partitioned vectors are there already."""
    left = []
    _check_keys(solver, state, saved)
    for key, empty in state.items():
        path = f"{SOLVER}/{key}"
        if is_own(solver, key):
            if own is None or path not in own:
                left.append(key)
                continue
            state[key] = _like(empty, own[path], key)
        else:
            state[key] = _load_entry(objective.model, key, empty, saved, point)
    if left:
        # What is known of the present point is known of each rank too, or not at all.
        state["known"] = False
        logger.warning(
            "Another number of ranks, or another layout, goes on: what each rank remembered (%s) starts anew.",
            ", ".join(left),
        )


def _load_entry(model: Model, key: str, empty: Value, saved: Mapping[str, Any], point: Vector) -> Value:
    path = f"{SOLVER}/{key}"
    names = spread(model, key, empty).keys()
    if names == {path} and path in saved:
        return empty if isinstance(saved[path], Partitioned) else _like(empty, saved[path], key)
    if key == "parameters" and not any(name == path or name.startswith(f"{path}/") for name in saved):
        return point.clone()
    if names == {path} or not names <= saved.keys():
        raise UsageError(
            f"The run was saved in a layout in which its method keeps its vectors in another form ({key}). Go on with "
            "the parallel.layout it was begun with, or start anew with --fresh.",
            collective=True,
        )
    return empty


def _check_keys(solver: Solver, state: State, saved: Mapping[str, Any]) -> None:
    wanted = {key for key in state if not is_own(solver, key)} | {"parameters"}
    there = {name.split("/")[1] for name in saved if name.startswith(f"{SOLVER}/")} | {"parameters"}
    if wanted != there:
        raise UsageError(
            f"The checkpoint is of another method, or of other options of it: its state holds {_words(there - wanted)} "
            f"and lacks {_words(wanted - there)}. Go on with the options it was made with, or start anew with --fresh.",
            collective=True,
        )


def _words(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "nothing more"


def _like(empty: Value, value: Any, key: str) -> Value:
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


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape if isinstance(value, (torch.Tensor, Partitioned)) else np.shape(value))


def _tensor(value: Any) -> torch.Tensor:
    if isinstance(value, Partitioned):
        found: torch.Tensor = value.data
        return found
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
