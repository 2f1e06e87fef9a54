"""Reading a run directory: the tables of ``metrics.h5`` and the small files, while the run goes on or after it ended.

Needs neither MPI nor torch. The reader never waits for the writer and never disturbs it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from hpcopt.analysis.checkpoint import Checkpoint, Published, find_checkpoint, published_checkpoints
from hpcopt.checkpoint.folder import FOLDER, LATEST
from hpcopt.errors import UsageError, nearest
from hpcopt.train.run import lock as run_lock
from hpcopt.train.run.directory import ENVIRONMENT, METRICS, STATUS, holds_run
from hpcopt.train.run.record import EVALUATION_COLUMNS, ITERATION_COLUMNS, Column
from hpcopt.train.run.record_reader import Tables, empty_table, read_local_iterations, read_tables

CUMULATIVE = ("values", "gradients", "curvature_products", "calls", "seconds_waited")
"""Columns of the iterations that are 0, not unknown, before the first iteration."""

KILLED = "The process ended without closing the run; it was killed or the machine failed."


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a run directory for reading.

    Raises:
        UsageError: there is no run at ``path``.
    """
    return Run(Path(path))


class Run:
    """A run directory as it is now; ``refresh`` reads it again.

    Attributes:
        path: the run directory, absolute.
    """

    def __init__(self, path: Path) -> None:
        """Raises UsageError when there is no run at ``path``."""
        self.path = Path(os.path.abspath(path))
        if not os.path.isdir(self.path) or not holds_run(self.path):
            raise UsageError(_no_run(path, self.path))
        self.refresh()

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.status}, {self.evaluations.size} evaluations)"

    def refresh(self) -> None:
        """Read everything again at the next access."""
        self._tables: Tables | None = None
        self._facts: dict[str, Any] | None = None
        self._history: np.recarray | None = None
        self._local_iterations: np.ndarray | None = None

    @property
    def name(self) -> str:
        """The name of the directory."""
        return self.path.name

    @property
    def facts(self) -> dict[str, Any]:
        """What ``status.json`` says (empty without one), with ``status`` corrected for a process that is gone."""
        if self._facts is None:
            self._facts = _read_facts(self.path)
        return self._facts

    @property
    def status(self) -> str:
        """``"running"``, ``"finished"``, ``"saved"``, ``"diverged"`` or ``"failed"``."""
        return str(self.facts["status"])

    @property
    def environment(self) -> dict[str, Any]:
        """What ``environment.json`` says, empty without one."""
        return _read_json(self.path / ENVIRONMENT)

    @property
    def iterations(self) -> np.recarray:
        """One row an iteration."""
        return self._read()["iterations"]

    @property
    def evaluations(self) -> np.recarray:
        """One row an evaluation; the first is of the starting point."""
        return self._read()["evaluations"]

    @property
    def ranks(self) -> np.recarray:
        """Times of each rank: columns ``seconds_step`` and ``seconds_waited`` have shape (rows, ranks)."""
        return self._read()["ranks"]

    @property
    def local_iterations(self) -> np.ndarray:
        """Local iterations of each rank, shape (iterations, ranks), -1 without a local phase.

        The shape is (iterations, 0) when the method has no local phases.
        """
        if self._local_iterations is None:
            self._local_iterations = read_local_iterations(self.path / METRICS)
        return self._local_iterations

    @property
    def history(self) -> np.recarray:
        """The evaluations, with the columns of the iteration before each; NaN where there is none."""
        if self._history is None:
            self._history = merge(self.evaluations, self.iterations)
        return self._history

    @property
    def checkpoints(self) -> list[Published]:
        """The checkpoints the run has at this moment, oldest first, by what is in its folder."""
        return published_checkpoints(self.path / FOLDER)

    def checkpoint(self, which: str | int = LATEST) -> Checkpoint:
        """Open a checkpoint as it is at this moment: its ``parameters`` are a dict of NumPy arrays.

        Args:
            which: ``"latest"`` for the newest that is whole, ``"best"`` for the parameters of the best point up to
                there, or the number of a step.

        Raises:
            UsageError: the run has no checkpoint, or none of this step.
            CheckpointError: it is damaged (``exit_status`` 4).
        """
        return find_checkpoint(self.path / FOLDER, which)

    def _read(self) -> Tables:
        if self._tables is None:
            self._tables = read_tables(self.path / METRICS)
        return self._tables


def merge(evaluations: np.recarray, iterations: np.recarray) -> np.recarray:
    """Add to each evaluation what only the table of iterations knows of the iteration it came after."""
    added = [column for column in ITERATION_COLUMNS if column.name not in names(evaluations)]
    history = empty_table([*EVALUATION_COLUMNS, *(Column(*column[:3]) for column in added)], evaluations.size)
    for name in names(evaluations):
        history[name] = evaluations[name]
    numbers = iterations["iteration"]
    rows = np.searchsorted(numbers, evaluations["iteration"])
    inside = np.minimum(rows, max(0, numbers.size - 1))
    found = (numbers[inside] == evaluations["iteration"]) if numbers.size else np.zeros(evaluations.size, dtype=bool)
    for column in added:
        history[column.name][found] = iterations[column.name][inside[found]]
        if column.name in CUMULATIVE:
            history[column.name][evaluations["iteration"] == 0] = 0.0
    return history


def names(table: np.recarray) -> tuple[str, ...]:
    """The columns of a table."""
    return tuple(table.dtype.names or ())


def _read_facts(path: Path) -> dict[str, Any]:
    lock = path / run_lock.FILE_NAME
    alive = run_lock.is_alive(lock)
    # Read after the lock: a run writes its last status before it gives the lock back.
    facts = {"status": "running", "stop_reason": None, **_read_json(path / STATUS)}
    if facts["status"] == "running" and not alive:
        facts["status"], facts["stop_reason"] = "failed", facts["stop_reason"] or KILLED
    return facts


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _no_run(given: Path, path: Path) -> str:
    folders = [folder for folder in (*reversed(path.parents), path) if os.path.isdir(folder)]
    if closed := next((folder for folder in folders if not os.access(folder, os.X_OK)), None):
        return (
            f"The run directory {str(given)!r} cannot be looked into: this process may not enter {closed}. Ask its "
            "owner for the permission to read and enter it, or give another run."
        )
    if not path.exists():
        siblings = [entry.name for entry in _folders(path.parent)]
        return (
            f"There is no run directory {str(given)!r}{nearest(path.name, siblings)} Give that of a run: runs/NAME, "
            "unless it was started with --run-dir."
        )
    if not path.is_dir():
        return f"{str(given)!r} is a file, not a run directory. Give the directory that holds {STATUS} and {METRICS}."
    inside = sorted(entry.name for entry in _folders(path) if holds_run(entry))[:5]
    hint = f" It has runs inside: {', '.join(inside)}." if inside else ""
    return f"The directory {str(given)!r} holds no run: neither {STATUS} nor {METRICS} is there.{hint}"


def _folders(path: Path) -> list[Path]:
    """For a hint in a message: those that can be seen."""
    try:
        return [entry for entry in path.iterdir() if entry.is_dir()]
    except OSError:
        return []
