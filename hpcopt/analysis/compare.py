"""Runs side by side: what each came to and cost, and what each had reached when all had spent the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpcopt.analysis.history import Run
from hpcopt.analysis.summary import best_row, point, summary, task
from hpcopt.train.run.directory import plain

BUDGETS = ("epochs", "gradient_equivalents", "seconds", "bytes")
"""What runs can be compared at: the column of the evaluations is the same, but for ``epoch``."""

COLUMNS = {"epochs": "epoch"}


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """Compare runs by epochs, gradient equivalents, seconds of training and bytes sent by rank 0.

    Returns:
        ``runs``: one mapping a run with what it cost, where it ended and its best point; ``equal``: for each budget
        the largest amount that every run with evaluations has spent, and for each run its best point within it;
        ``differences``: what should be the same in a fair comparison and is not. Ready for JSON.
    """
    labels = labels_of(runs)
    started = [(label, run) for label, run in zip(labels, runs, strict=True) if run.evaluations.size]
    return {
        "runs": [_row(label, run) for label, run in zip(labels, runs, strict=True)],
        "equal": {budget: _at_equal(budget, started) for budget in BUDGETS} if started else {},
        "differences": _differences(runs),
    }


def labels_of(runs: Sequence[Run]) -> list[str]:
    """The shortest endings of the runs' paths that differ from each other."""
    parts = [run.path.parts for run in runs]
    for length in range(1, max((len(part) for part in parts), default=1) + 1):
        labels = [str(Path(*part[-length:])) for part in parts]
        if len(set(labels)) == len(set(parts)):
            return labels
    return [str(run.path) for run in runs]


def reached(run: Run, column: str, amount: float) -> dict[str, Any]:
    """The best point of a run among its evaluations up to an amount of something spent."""
    spent = run.evaluations[column]
    # Rounding must not exclude the evaluation that defined the amount.
    within = run.evaluations[spent <= amount * (1 + 1e-12)]
    row = best_row(within, task(run))
    found = point(within, row)
    return {**found, "spent": None if row is None else float(within[column][row])}


def _row(label: str, run: Run) -> dict[str, Any]:
    facts = summary(run)
    return {
        "run": label,
        **{name: facts[name] for name in ("status", "solver", "model", "data", "ranks", "iterations")},
        "epochs": facts["epochs"],
        "gradient_equivalents": facts["work"]["gradient_equivalents"],
        "seconds": facts["seconds"],
        "bytes": facts["communication"]["bytes"],
        "seconds_waited": facts["communication"]["seconds_waited"],
        "accepted": facts["steps"]["accepted"],
        "rejected": facts["steps"]["rejected"],
        "final": facts["final"],
        "best": facts["best"],
    }


def _at_equal(budget: str, started: Sequence[tuple[str, Run]]) -> dict[str, Any]:
    column = COLUMNS.get(budget, budget)
    amount = min(float(np.nanmax(run.evaluations[column])) for _, run in started)
    return {
        "budget": amount,
        "runs": [plain({"run": label, **reached(run, column, amount)}) for label, run in started],
    }


def _differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    found = {}
    for name in ("data", "model", "task", "training_samples"):
        values = [run.facts.get(name) for run in runs]
        different = [value for place, value in enumerate(values) if value is not None and value not in values[:place]]
        if len(different) > 1:
            found[name] = different
    return found
