"""Reading a run directory: the tables of ``metrics.h5`` and the small files, while the run goes on or after it ended.

Needs neither MPI nor torch. The reader never waits for the writer and never disturbs it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from hpcopt.errors import UsageError, nearest
from hpcopt.train import run_lock
from hpcopt.train.record import EVALUATION_COLUMNS, FORMAT, ITERATION_COLUMNS, RANK_COLUMNS, SCHEMA, Column
from hpcopt.train.run_directory import ENVIRONMENT, METRICS, STATUS, holds_run

Tables = dict[str, np.recarray]
T = TypeVar("T")

CUMULATIVE = ("values", "gradients", "curvature_products", "calls", "seconds_waited")
"""Columns of the iterations that are 0, not unknown, before the first iteration."""

ATTEMPTS = 5
PAUSE_SECONDS = 0.05
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
        if not self.path.is_dir() or not holds_run(self.path):
            raise UsageError(_no_run(path, self.path))
        self.refresh()

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.status}, {self.evaluations.size} evaluations)"

    def refresh(self) -> None:
        """Read everything again at the next access."""
        self._tables: Tables | None = None
        self._facts: dict[str, Any] | None = None
        self._history: np.recarray | None = None

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
    def history(self) -> np.recarray:
        """The evaluations, with the columns of the iteration before each; NaN where there is none."""
        if self._history is None:
            self._history = merge(self.evaluations, self.iterations)
        return self._history

    def _read(self) -> Tables:
        if self._tables is None:
            self._tables = read_tables(self.path / METRICS)
        return self._tables


def merge(evaluations: np.recarray, iterations: np.recarray) -> np.recarray:
    """Add to each evaluation what only the table of iterations knows of the iteration it came after."""
    added = [column for column in ITERATION_COLUMNS if column.name not in names(evaluations)]
    history = _table([*EVALUATION_COLUMNS, *(Column(*column[:3]) for column in added)], evaluations.size)
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


def read_tables(path: Path) -> Tables:
    """Read ``metrics.h5``; empty tables when the file does not exist (yet). Raises UsageError when it is damaged."""
    if not path.exists():
        return {
            "iterations": _table(ITERATION_COLUMNS, 0),
            "evaluations": _table(EVALUATION_COLUMNS, 0),
            "ranks": _table(RANK_COLUMNS, 0, width=1),
        }
    try:
        with _retrying(lambda: h5py.File(path, "r", libver="latest", swmr=True, locking="best-effort")) as file:
            _check_format(path, file)
            # The writer writes evaluations last, so read them first: each one found then has its iterations.
            evaluations = _read_table(file, "evaluations", EVALUATION_COLUMNS)
            ranks = _read_table(file, "ranks", RANK_COLUMNS, wide=True)
            return {
                "iterations": _read_table(file, "iterations", ITERATION_COLUMNS),
                "evaluations": evaluations,
                "ranks": ranks,
            }
    except (OSError, KeyError, RuntimeError) as error:
        raise UsageError(
            f"The record {path} cannot be read: {str(error).splitlines()[0]}. It is damaged or was not written by "
            "hpcopt; the other files of the run are not affected."
        ) from error


def _check_format(path: Path, file: h5py.File) -> None:
    if file.attrs.get("format") != FORMAT:
        raise UsageError(f"The file {path} is not a record of hpcopt: its attribute 'format' is not {FORMAT!r}.")
    schema = int(file.attrs["schema"])
    if schema > SCHEMA:
        raise UsageError(
            f"The record {path} has schema {schema}; this version of hpcopt reads up to {SCHEMA}. Update hpcopt."
        )


def _read_table(file: h5py.File, name: str, columns: tuple[Column, ...], wide: bool = False) -> np.recarray:
    group = file[name]
    # The writer fills this column last, so its rows are complete in all the others.
    numbers = _retrying(lambda: _read_column(group["iteration"]))
    unwritten = np.flatnonzero(numbers < 0)
    count = int(unwritten[0]) if unwritten.size else numbers.size
    width = group[columns[-1].name].shape[1] if wide else 0
    table = _table(columns, count, width)
    for column in columns:
        if column.name in group:
            values = numbers if column.name == "iteration" else _retrying(_column_reader(group[column.name]))
            table[column.name][: len(values[:count])] = values[:count]
    return table


def _column_reader(dataset: h5py.Dataset) -> Callable[[], np.ndarray]:
    return lambda: _read_column(dataset)


def _read_column(dataset: h5py.Dataset) -> np.ndarray:
    dataset.refresh()
    try:
        return np.asarray(dataset[...])
    except OSError:
        return _read_unchecked(dataset)


def _read_unchecked(dataset: h5py.Dataset) -> np.ndarray:
    """Read without checksums: the last chunk's does not fit when the writer is at work on it or was killed there.

    The rows that count are whole all the same: a chunk is rewritten with the same rows and new ones behind them.
    """
    values = np.full(dataset.shape, dataset.fillvalue, dtype=dataset.dtype)
    for index in range(dataset.id.get_num_chunks()):
        chunk = dataset.id.get_chunk_info(index)
        _, content = dataset.id.read_direct_chunk(chunk.chunk_offset)
        start = chunk.chunk_offset[0]
        rows = np.frombuffer(content[: chunk.size - 4], dtype=dataset.dtype).reshape(dataset.chunks)
        values[start : start + len(rows)] = rows[: max(0, len(values) - start)]
    return values


def _retrying(action: Callable[[], T]) -> T:
    """Try again a few times: a reader may meet the file while the writer changes its metadata."""
    for attempt in range(ATTEMPTS):
        try:
            return action()
        except (OSError, RuntimeError):
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(PAUSE_SECONDS)
    raise AssertionError


def _table(columns: Any, rows: int, width: int = 0) -> np.recarray:
    """A record array of fill values."""
    kinds: list[Any] = []
    for column in columns:
        kind = np.int64 if column.whole else np.float64
        kinds.append((column.name, kind, (width,)) if width and column.name != "iteration" else (column.name, kind))
    table = np.recarray((rows,), dtype=kinds)
    for column in columns:
        table[column.name] = -1 if column.whole else np.nan
    return table


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
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
        return f"There is no run directory {str(given)!r}{nearest(path.name, siblings)}"
    if not path.is_dir():
        return f"{str(given)!r} is a file, not a run directory. Give the directory that holds {STATUS} and {METRICS}."
    inside = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and holds_run(entry))[:5]
    hint = f" It has runs inside: {', '.join(inside)}." if inside else ""
    return f"The directory {str(given)!r} holds no run: neither {STATUS} nor {METRICS} is there.{hint}"
