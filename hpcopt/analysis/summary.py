"""A run in one mapping, with the keys that ``hpcopt inspect RUN --json`` promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hpcopt.analysis.history import Run, names
from hpcopt.train.run.directory import plain

POINT = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "test_explained_variance")
"""What is said of one iterate."""

CURVATURE_COST = 4 / 3
"""Cost of a curvature product in gradients until a run has measured its own."""


def summary(run: Run) -> dict[str, Any]:
    """Everything ``inspect --json`` prints, ready for JSON: what is unknown is None.

    Losses are means over all samples of the set, accuracies fractions; work is in passes over the training set.
    """
    evaluations, iterations = run.evaluations, run.iterations
    stated = ("stop_reason", "solver", "model", "data", "ranks", "layout", "parameters")
    summarised: dict[str, Any] = {
        "run": run.name,
        "status": run.status,
        **{name: run.facts.get(name) for name in stated},
        "iterations": int(max(_last(iterations, "iteration", 0), _last(evaluations, "iteration", 0))),
        "epochs": max(_last(iterations, "epoch", 0.0), _last(evaluations, "epoch", 0.0)),
        "seconds": max(_last(iterations, "seconds", 0.0), _last(evaluations, "seconds", 0.0)),
        "checkpoints": [checkpoint._asdict() for checkpoint in run.checkpoints],
        "initial": point(evaluations, 0),
        "final": point(evaluations, -1),
        "best": point(evaluations, best_row(evaluations, task(run))),
        "work": work(evaluations, iterations),
        "communication": {
            "calls": int(_last(iterations, "calls", 0)),
            "bytes": int(max(_last(iterations, "bytes", 0), _last(evaluations, "bytes", 0))),
            "seconds_waited": _last(iterations, "seconds_waited", 0.0),
        },
        "time": times(run),
        "steps": {
            "accepted": int(np.count_nonzero(iterations["accepted"] == 1)),
            "rejected": int(np.count_nonzero(iterations["accepted"] == 0)),
        },
        "local_iterations": local_iterations(run),
        "history": history_rows(run),
    }
    return {key: plain(value) for key, value in summarised.items()}


def times(run: Run) -> dict[str, Any]:
    """Seconds of the last start on rank 0, by what they went into, and those of every rank in its steps.

    Of a run that has not ended only the latter are known.
    """
    ended = run.facts.get("summary", {}).get("time", {})
    columns = {"step": "seconds_step", "waited": "seconds_waited", "for_others": "seconds_for_others"}
    sums = {name: run.ranks[column].sum(axis=0) for name, column in columns.items()}
    known = {name: list(each) if np.isfinite(each).all() else None for name, each in sums.items()}
    return {name: ended.get(name) for name in ("all", "evaluation", "record", "checkpoints")} | {"by_rank": known}


def task(run: Run) -> str:
    """``"classification"`` or ``"regression"``."""
    stated = run.facts.get("task")
    if stated in ("classification", "regression"):
        return str(stated)
    known = np.isfinite(run.evaluations["train_accuracy"]) | np.isfinite(run.evaluations["test_accuracy"])
    return "classification" if known.any() else "regression"


def best_row(evaluations: np.ndarray, kind: str) -> int | None:
    """The row with the best test accuracy (classification) or test loss; without a test set the best train loss.

    Among equal accuracies the lowest test loss counts, then the earliest. None when nothing is known.
    """
    if kind == "classification" and np.isfinite(evaluations["test_accuracy"]).any():
        keys = (_unknown_last(evaluations["test_loss"]), _unknown_last(-evaluations["test_accuracy"]))
        return int(np.lexsort(keys)[0])
    for name in ("test_loss", "train_loss"):
        if np.isfinite(evaluations[name]).any():
            return int(np.argmin(_unknown_last(evaluations[name])))
    return None


def point(evaluations: np.ndarray, row: int | None) -> dict[str, float | int | None]:
    """Losses, accuracies and place of one evaluation; everything None when there is none."""
    if row is None or evaluations.size == 0:
        return dict.fromkeys((*POINT, "epoch", "iteration"))
    values = evaluations[row]
    return {
        **{name: float(values[name]) for name in (*POINT, "epoch")},
        "iteration": int(values["iteration"]),
    }


def work(evaluations: np.recarray, iterations: np.recarray) -> dict[str, float]:
    """Passes over the training set up to the last iteration, and their weighted sum."""
    spent = {name: _last(iterations, name, 0.0) for name in ("values", "gradients", "curvature_products")}
    return {
        **spent,
        "inner_iterations": int(np.clip(iterations["inner_iterations"], 0, None).sum()),
        "gradient_equivalents": spent["values"] / 3
        + spent["gradients"]
        + spent["curvature_products"] * curvature_cost(evaluations, iterations),
    }


def curvature_cost(evaluations: np.recarray, iterations: np.recarray) -> float:
    """Cost of a curvature product in gradients, as it went into the gradient equivalents of the evaluations."""
    if evaluations.size == 0 or iterations.size == 0:
        return CURVATURE_COST
    row = int(np.searchsorted(iterations["iteration"], evaluations["iteration"][-1]))
    if row >= iterations.size or not iterations["curvature_products"][row] > 0:
        return CURVATURE_COST
    rest = evaluations["gradient_equivalents"][-1] - iterations["values"][row] / 3 - iterations["gradients"][row]
    cost = float(rest / iterations["curvature_products"][row])
    return cost if math.isfinite(cost) and cost >= 0 else CURVATURE_COST


def local_iterations(run: Run) -> list[float] | None:
    """Mean iterations of each rank in a local phase; None when the run had none."""
    counts = run.local_iterations
    phases = counts[(counts >= 0).all(axis=1)] if counts.size else counts
    return [float(mean) for mean in phases.mean(axis=0)] if phases.size else None


def history_rows(run: Run) -> list[dict[str, float | int | None]]:
    """The history as one mapping an evaluation."""
    history = run.history
    columns = {name: plain(history[name]) for name in names(history)}
    return [{name: values[row] for name, values in columns.items()} for row in range(history.size)]


def _last(table: np.recarray, name: str, otherwise: float) -> float:
    value = float(table[name][-1]) if table.size else otherwise
    return value if math.isfinite(value) else otherwise


def _unknown_last(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.inf)
