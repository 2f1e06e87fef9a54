"""Reading ``metrics.h5``, while its writer is at work or after it was killed. The reader never waits for the writer."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from hpcopt.errors import UsageError
from hpcopt.train.run.record import (
    EVALUATION_COLUMNS,
    FORMAT,
    ITERATION_COLUMNS,
    LOCAL_ITERATIONS,
    RANK_COLUMNS,
    SCHEMA,
    Column,
)

Tables = dict[str, np.recarray]
T = TypeVar("T")

FLAGS = 11
"""Byte of a file of HDF5 1.10 (superblock 3) that is 0 when no writer has it open."""

ATTEMPTS = 5
PAUSE_SECONDS = 0.05

HDF5_ATTEMPTS = 20
"""Of reading metadata in a file that is being written: with the pauses between them about a millisecond."""


def read_tables(path: Path) -> Tables:
    """Read ``metrics.h5``; empty tables when the file does not exist (yet). Raises UsageError when it is damaged."""
    if not path.exists():
        return {
            "iterations": empty_table(ITERATION_COLUMNS, 0),
            "evaluations": empty_table(EVALUATION_COLUMNS, 0),
            "ranks": empty_table(RANK_COLUMNS, 0, width=1),
        }
    with _opened(path) as file:
        # The writer writes evaluations last, so read them first: each one found then has its iterations.
        evaluations = _read_table(file, "evaluations", EVALUATION_COLUMNS)
        ranks = _read_table(file, "ranks", RANK_COLUMNS, wide=True)
        return {
            "iterations": _read_table(file, "iterations", ITERATION_COLUMNS),
            "evaluations": evaluations,
            "ranks": ranks,
        }


def read_local_iterations(path: Path) -> np.ndarray:
    """Local iterations of each rank, int64, shape (iterations, ranks); -1 where an iteration had no local phase.

    The shape is (iterations, 0) when the method has no local phases, or when the record is older than this column.

    Raises:
        UsageError: the record is damaged.
    """
    if not path.exists():
        return np.empty((0, 0), dtype=np.int64)
    with _opened(path) as file:
        group = file["iterations"]
        rows = _complete_rows(_retrying(_column_reader(group["iteration"])))
        name = LOCAL_ITERATIONS.name
        values = _retrying(_column_reader(group[name]))[:rows] if name in group else np.empty((0, 0), dtype=np.int64)
    if not len(values):
        return np.empty((rows, 0), dtype=np.int64)
    found = np.full((rows, values.shape[1]), -1, dtype=np.int64)
    found[: len(values)] = values
    return found


def earlier_rows(path: Path, iterations: int, ranks: int) -> dict[str, list[dict[str, Any]]]:
    """The rows of the first ``iterations`` iterations, for a record that goes on from there on ``ranks`` ranks.

    What has one number a rank is left out when it is of another number of ranks. Raises UsageError when the record is
    damaged.
    """
    tables = read_tables(path)
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, table in tables.items():
        kept = table[table["iteration"] <= iterations]
        if name == "ranks" and kept.dtype["seconds_step"].shape != (ranks,):
            kept = kept[:0]
        names = kept.dtype.names or ()
        rows[name] = [dict(zip(names, row, strict=True)) for row in kept.tolist()]
    local = read_local_iterations(path)
    fits = local.shape[1] == ranks
    for index, row in enumerate(rows["iterations"]):
        row[LOCAL_ITERATIONS.name] = tuple(local[index].tolist()) if fits else ()
    for row in rows["ranks"]:
        row |= {key: tuple(value) for key, value in row.items() if key != "iteration"}
    return rows


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """The record, open for reading. Raises UsageError for what HDF5 refuses, here or in the block."""
    try:
        with _retrying(lambda: _open(path)) as file:
            _check_format(path, file)
            yield file
    except (OSError, KeyError, RuntimeError) as error:
        raise UsageError(
            f"The record {path} cannot be read: {str(error).splitlines()[0]}. It is damaged or was not written by "
            "hpcopt; the other files of the run are not affected."
        ) from error


def _open(path: Path) -> h5py.File:
    """Open the record, as one that is being written only where it is, or was when its writer was killed."""
    with open(path, "rb") as file:
        superblock = file.read(FLAGS + 1)
    if superblock[FLAGS:] in (b"", b"\0"):
        # Without a lock, which would keep a run that goes on from writing.
        return h5py.File(path, "r", libver="latest", locking=False)
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_LATEST, h5py.h5f.LIBVER_LATEST)
    access.set_file_locking(True, True)
    _limit_attempts(access)
    flags = h5py.h5f.ACC_RDONLY | h5py.h5f.ACC_SWMR_READ
    return h5py.File(h5py.h5f.open(os.fsencode(path), flags, fapl=access))


def _limit_attempts(access: h5py.h5p.PropFAID) -> None:
    """Let HDF5 try to read metadata a few times only. By default it is a hundred, each after twice the last pause.

    Of a record that is damaged, as a host that lost its power may leave it, that would be for ever. h5py has no name
    for the property, but its own module has been linked to the library's function.
    """
    library = ctypes.CDLL(h5py.h5p.__file__)
    if (function := getattr(library, "H5Pset_metadata_read_attempts", None)) is not None:
        function.argtypes, function.restype = (ctypes.c_int64, ctypes.c_uint), ctypes.c_int
        function(access.id, HDF5_ATTEMPTS)


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
    numbers = _retrying(_column_reader(group["iteration"]))
    count = _complete_rows(numbers)
    width = next(group[column.name].shape[1] for column in columns[1:] if column.name in group) if wide else 0
    table = empty_table(columns, count, width)
    for column in columns:
        if column.name in group:
            values = numbers if column.name == "iteration" else _retrying(_column_reader(group[column.name]))
            table[column.name][: len(values[:count])] = values[:count]
    return table


def _complete_rows(numbers: np.ndarray) -> int:
    """Rows that count: the writer fills the column ``iteration`` last, so these are complete in all others."""
    unwritten = np.flatnonzero(numbers < 0)
    return int(unwritten[0]) if unwritten.size else numbers.size


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


def empty_table(columns: Any, rows: int, width: int = 0) -> np.recarray:
    """A record array of fill values."""
    kinds: list[Any] = []
    for column in columns:
        kind = np.int64 if column.whole else np.float64
        kinds.append((column.name, kind, (width,)) if width and column.name != "iteration" else (column.name, kind))
    table = np.recarray((rows,), dtype=kinds)
    for column in columns:
        table[column.name] = -1 if column.whole else np.nan
    return table
