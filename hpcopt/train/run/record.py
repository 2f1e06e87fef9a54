"""The record of a run, ``metrics.h5``: written by rank 0, readable while the run is going and after it was killed.

One extendible data set a column, in SWMR mode (single writer, multiple readers) from the start. Rows are buffered, and
in every table the column ``iteration`` is written last: a row counts when its iteration number is there, so a reader,
also one that comes after a ``kill -9``, never sees half a row.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, NamedTuple

import h5py
import numpy as np

from hpcopt.errors import UsageError
from hpcopt.train.run.directory import METRICS

logger = logging.getLogger(__name__)

SCHEMA = 1
FORMAT = "hpcopt metrics"
CHUNK_ROWS = 1024
BUFFER_ROWS = CHUNK_ROWS
FLUSH_SECONDS = 2.0
MARGIN_BYTES = 1 << 20


class Column(NamedTuple):
    """One column of a table: its name, its unit and what it means. Whole numbers are int64, all else float64.

    A column ``by_rank`` has shape (rows, ranks).
    """

    name: str
    unit: str
    meaning: str
    whole: bool = False
    by_rank: bool = False


ITERATION_COLUMNS = (
    Column("iteration", "1", "number of the iteration, from 1", whole=True),
    Column("epoch", "passes over the training set", "epochs done after the step"),
    Column("seconds", "s", "training time since the start, without evaluation and I/O"),
    Column("batch", "1", "samples of the step's batch over all ranks", whole=True),
    Column("loss", "1", "objective on the batch at the start of the step"),
    Column("loss_after", "1", "objective on the same batch where the step ended"),
    Column("gradient_norm", "1", "2-norm of the gradient at the start of the step"),
    Column("step_norm", "1", "2-norm of the change of the parameters"),
    Column("step_size", "1", "learning rate or step length of the line search"),
    Column("accepted", "0 or 1", "whether the parameters changed", whole=True),
    Column("rho", "1", "actual over predicted decrease"),
    Column("radius", "1", "trust-region radius after its update"),
    Column("damping", "1", "damping of the curvature after its update"),
    Column("predicted", "1", "predicted decrease"),
    Column("inner_iterations", "1", "iterations of the subproblem or the line search", whole=True),
    Column("values", "passes over the training set", "loss evaluations since the start"),
    Column("gradients", "passes over the training set", "gradient evaluations since the start"),
    Column("curvature_products", "passes over the training set", "curvature products since the start"),
    Column("calls", "1", "communication calls of rank 0 since the start", whole=True),
    Column("bytes", "B", "bytes rank 0 handed to communication since the start", whole=True),
    Column("seconds_waited", "s", "time rank 0 waited in communication since the start"),
)

LOCAL_ITERATIONS = Column(
    "local_iterations", "1", "iterations of each rank in the local phase, -1 without one", whole=True, by_rank=True
)
"""The last column of ``/iterations``. It has no rows as long as no iteration had a local phase."""

EVALUATION_COLUMNS = (
    Column("iteration", "1", "iterations done before the evaluation, 0 at the start", whole=True),
    Column("epoch", "passes over the training set", "epochs done before the evaluation"),
    Column("seconds", "s", "training time since the start, without evaluation and I/O"),
    Column("wall_seconds", "s", "time since the start with everything"),
    Column("train_loss", "1", "mean loss over all training samples"),
    Column("train_accuracy", "fraction", "share of the training samples classified right"),
    Column("test_loss", "1", "mean loss over all test samples"),
    Column("test_accuracy", "fraction", "share of the test samples classified right"),
    Column("test_explained_variance", "fraction", "1 - squared error over variance of the test targets"),
    Column("gradient_norm", "1", "2-norm of the gradient in the latest iteration"),
    Column("radius", "1", "trust-region radius after the latest iteration"),
    Column("gradient_equivalents", "gradients of the training set", "work since the start"),
    Column("bytes", "B", "bytes rank 0 handed to communication since the start", whole=True),
    Column("accepted", "1", "accepted steps since the start", whole=True),
    Column("rejected", "1", "rejected steps since the start", whole=True),
)

RANK_COLUMNS = (
    Column("iteration", "1", "number of the latest iteration counted in the row", whole=True),
    Column("seconds_step", "s", "time a rank spent in its iterations since the last row", by_rank=True),
    Column("seconds_waited", "s", "time a rank waited in communication since the last row", by_rank=True),
    Column("seconds_for_others", "s", "part of it in which another rank had not come, by barriers", by_rank=True),
)


class Table:
    """The data sets of one group of the file, with the rows that wait to be written."""

    def __init__(self, file: h5py.File, name: str, columns: Sequence[Column], ranks: int) -> None:
        """Create the data sets; columns by rank have shape (rows, ranks)."""
        self.name = name
        self.columns = tuple(columns)
        self.names = tuple(column.name for column in columns)
        self.known = frozenset(self.names)
        self._row = itemgetter(*self.names)
        self.waiting: list[tuple[Any, ...]] = []
        self.rows = 0
        group = file.create_group(name)
        self._widths = tuple(ranks if column.by_rank else 0 for column in columns)
        self._sets = [_new_column(group, column, wide) for column, wide in zip(columns, self._widths, strict=True)]

    def append(self, values: Mapping[str, Any]) -> None:
        """Keep one row; every column once, by name, () for a column by rank that is unknown. Raises TypeError."""
        if values.keys() != self.known:
            self._refuse(values)
        self.waiting.append(self._row(values))

    def write(self) -> None:
        """Write the waiting rows and flush them to the operating system, ``iteration`` after all other columns."""
        if not self.waiting:
            return
        columns = list(zip(*self.waiting, strict=True))
        # The rows are gone from here on, written or not: a write that failed must not be tried again.
        self.waiting = []
        count = len(columns[0])
        for index in (*range(1, len(columns)), 0):
            self._write_column(index, columns[index], count)
        self.rows += count

    def _write_column(self, index: int, values: Sequence[Any], count: int) -> None:
        wide, dataset, end = self._widths[index], self._sets[index], self.rows + count
        if wide and not all(values):
            if not any(values) and not dataset.id.shape[0]:
                return
            values = [row or (-1,) * wide for row in values]
        # The low-level calls take 5 us a row for a table of 19 columns, h5py's resize and slicing 20 us.
        data = np.asarray(values, dtype=np.int64 if self.columns[index].whole else np.float64)
        tail = (wide,) if wide else ()
        dataset.id.set_extent((end, *tail))
        space = h5py.h5s.create_simple((end, *tail), (h5py.h5s.UNLIMITED, *tail))
        space.select_hyperslab((self.rows, 0) if wide else (self.rows,), (count, *tail))
        dataset.id.write(h5py.h5s.create_simple((count, *tail)), space, data)
        dataset.id.flush()

    def _refuse(self, values: Mapping[str, Any]) -> None:
        missing = ", ".join(name for name in self.names if name not in values)
        unknown = ", ".join(name for name in values if name not in self.known)
        raise TypeError(f"A row of {self.name!r} needs each column once; missing: {missing}; unknown: {unknown}.")


class Recorder:
    """Writes ``metrics.h5`` of a run. One process only (rank 0); no method communicates.

    Rows go to the file when 1,024 of them wait, or 2 seconds after the last write. A write that fails (disk full, file
    size limit) is reported once through ``logging`` and switches the record off: it never stops the run.
    """

    def __init__(
        self, run_dir: Path, ranks: int, earlier: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
    ) -> None:
        """Create the file in ``run_dir`` for a run on ``ranks`` ranks. Raises UsageError when that fails.

        Args:
            run_dir: the run directory. A record that is there is replaced.
            ranks: number of ranks.
            earlier: rows that the new record begins with, by table (see ``record_reader.earlier_rows``).
        """
        self.path = Path(run_dir) / METRICS
        self.ranks = ranks
        self._earlier = earlier or {}
        self._due = 0.0
        self._size_limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        self._file: h5py.File | None = None
        try:
            self._file = self._create()
        except (OSError, RuntimeError) as error:
            raise UsageError(
                f"The record {self.path} could not be created: {_reason(error)}. The run directory must be on a "
                "file system with free space that this process may write to; choose another one with --run-dir."
            ) from error

    @property
    def active(self) -> bool:
        """Whether rows still reach the file: False after ``close`` and after a write that failed."""
        return self._file is not None

    def iteration(self, **columns: Any) -> None:
        """Add a row to ``/iterations``; the columns are those of ``ITERATION_COLUMNS``.

        ``local_iterations`` may be missing; it has one value a rank, or none in an iteration without a local phase.
        """
        local = columns[LOCAL_ITERATIONS.name] = tuple(columns.get(LOCAL_ITERATIONS.name, ()))
        if local and len(local) != self.ranks:
            raise TypeError(f"Local iterations of {self.ranks} ranks are needed, got {len(local)}.")
        self._add(self._iterations, columns)

    def evaluation(self, **columns: float) -> None:
        """Add a row to ``/evaluations``; the columns are those of ``EVALUATION_COLUMNS``."""
        self._add(self._evaluations, columns)

    def rank_times(
        self, iteration: int, step: Sequence[float], waited: Sequence[float], others: Sequence[float]
    ) -> None:
        """Add a row to ``/ranks``: seconds by rank since the last row, in steps, waiting, and of it for others."""
        times = {"seconds_step": step, "seconds_waited": waited, "seconds_for_others": others}
        if any(len(each) != self.ranks for each in times.values()):
            found = ", ".join(f"{len(each)} {name}" for name, each in times.items())
            raise TypeError(f"Times of {self.ranks} ranks are needed, got {found}.")
        self._add(self._ranks, {"iteration": iteration} | {name: tuple(each) for name, each in times.items()})

    def _add(self, table: Table, values: Mapping[str, Any]) -> None:
        """Keep a row, and write what waits if it is time to."""
        table.append(values)
        if len(table.waiting) >= BUFFER_ROWS or time.monotonic() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        self._due = time.monotonic() + FLUSH_SECONDS
        if self._file is None:
            self._drop_rows()
            return
        try:
            self._check_size_limit()
            for table in self._tables:
                table.write()
        except (OSError, RuntimeError) as error:
            self._switch_off(error)

    def close(self) -> None:
        """Write what waits and close the file. Safe to call twice."""
        self.flush()
        if self._file is None:
            return
        try:
            self._file.close()
        except (OSError, RuntimeError) as error:
            self._switch_off(error)
        self._file = None

    def _create(self) -> h5py.File:
        # Under its name the file appears only once readers can open it.
        unfinished = self.path.with_name(f".{METRICS}.{os.getpid()}")
        file = h5py.File(unfinished, "w", libver="latest", locking="best-effort")
        try:
            self._file = file
            self._check_size_limit()
            file.attrs["schema"] = SCHEMA
            file.attrs["format"] = FORMAT
            self._iterations = Table(file, "iterations", (*ITERATION_COLUMNS, LOCAL_ITERATIONS), self.ranks)
            self._ranks = Table(file, "ranks", RANK_COLUMNS, self.ranks)
            self._evaluations = Table(file, "evaluations", EVALUATION_COLUMNS, self.ranks)
            # Evaluations come last: when one is there, so are the iterations before it.
            self._tables = (self._iterations, self._ranks, self._evaluations)
            file.swmr_mode = True
            for table in self._tables:
                table.waiting = [tuple(row[name] for name in table.names) for row in self._earlier.get(table.name, ())]
                table.write()
            self._earlier = {}
            file.flush()
            os.replace(unfinished, self.path)
        except (OSError, RuntimeError):
            unfinished.unlink(missing_ok=True)
            _close_into_memory(file)
            raise
        return file

    def _check_size_limit(self) -> None:
        # The copy in memory that a failed record is closed into falls under the limit too, so stop short of it.
        assert self._file is not None
        if self._size_limit >= 0 and self._file.id.get_filesize() + MARGIN_BYTES > self._size_limit:
            raise OSError(errno.EFBIG, f"the limit of {self._size_limit} bytes a file is reached (ulimit -f)")

    def _drop_rows(self) -> None:
        for table in self._tables:
            table.waiting.clear()

    def _switch_off(self, error: BaseException) -> None:
        logger.warning(
            "The record %s could not be written (%s). The run goes on without it; what was written before can be read.",
            self.path,
            _reason(error),
        )
        self._drop_rows()
        if self._file is not None:
            _close_into_memory(self._file)
        self._file = None


def _close_into_memory(file: h5py.File) -> None:
    """Close a file that can no longer be written, without another failing write.

    HDF5 flushes at the latest when the process ends, and ends it with a segmentation fault when that fails (seen with
    HDF5 2.0). So its descriptor is pointed at a copy in memory, where all that is left to write succeeds. The file on
    disk stays as it was, readable like that of a run that was killed.
    """
    try:
        descriptor = file.id.get_vfd_handle()
        with _scratch_file() as copy:
            position = 0
            while block := os.pread(descriptor, 1 << 20, position):
                position += copy.write(block)
            copy.flush()
            os.dup2(copy.fileno(), descriptor)
        file.close()
    except (OSError, RuntimeError) as error:
        logger.debug("Closing the record in memory failed: %s", error)


def _scratch_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("hpcopt-record"), "w+b")
    return tempfile.TemporaryFile()


def _reason(error: BaseException) -> str:
    """The operating system's words out of an HDF5 message that spans lines, else its first line."""
    if words := re.search(r"error message = '([^']+)'", str(error)):
        return words[1]
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]


def _new_column(group: h5py.Group, column: Column, width: int) -> h5py.Dataset:
    rows = max(1, CHUNK_ROWS // max(1, width // 8))
    dataset = group.create_dataset(
        column.name,
        shape=(0, width) if width else (0,),
        maxshape=(None, width) if width else (None,),
        chunks=(rows, width) if width else (CHUNK_ROWS,),
        dtype=np.int64 if column.whole else np.float64,
        fletcher32=True,
        fillvalue=-1 if column.whole else np.nan,
    )
    dataset.attrs["unit"] = column.unit
    dataset.attrs["meaning"] = column.meaning
    return dataset
