"""Loading: open the source, split off the test set, read this rank's shards, scale them alike on all ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcopt.comm.alike import first_difference
from hpcopt.data.batches import check_batch
from hpcopt.data.dataset import DataSet, Part
from hpcopt.data.options import INPUTS, DataOptions
from hpcopt.data.reader import Reader, Source, read_rows
from hpcopt.data.sources import open_source
from hpcopt.data.split import split_rows
from hpcopt.data.standardize import Scaling, check_augment, choose_kind, fit
from hpcopt.data.targets import check_labels, class_values, distinct_labels, infer_task, to_classes, to_values
from hpcopt.errors import UsageError
from hpcopt.layout.block import Block, block
from hpcopt.layout.grid import ProcessGrid

if TYPE_CHECKING:
    from hpcopt.comm.communicator import Communicator


@dataclass(frozen=True, eq=False)
class Shard:
    """This rank's rows of a set as they are in the file.

    Attributes:
        inputs: (n, *shape), the file's type.
        targets: (n,) or (n, k).
        rows: the row of each sample in its file.
        start: position of the first sample in the set.
        total: samples of the set over all ranks.
        reader: where they came from.
    """

    inputs: np.ndarray
    targets: np.ndarray
    rows: np.ndarray
    start: int
    total: int
    reader: Reader


@dataclass(frozen=True, eq=False)
class Made:
    """Targets as a model is trained on them: one array for each shard.

    Attributes:
        targets: int64 (n,) or float64 (n, outputs), of the training and of the test shard.
        outputs: classes or target columns.
        facts: for the record.
    """

    targets: list[np.ndarray]
    outputs: int
    facts: dict[str, Any]


def load(options: DataOptions, comm: Communicator, seed: int, grid: ProcessGrid | None = None) -> DataSet:
    """Load a data set, each rank its contiguous shard. *Collective*.

    Args:
        options: the [data] table.
        comm: the ranks that share the set.
        seed: the run's seed, for splits and orders that are drawn.
        grid: all ranks, when those of a row are to hold the same shard of the training set; test sets are always
            spread over all ranks.

    Raises:
        UsageError: on all ranks, if the source cannot be read on any of them, or does not fit the options or the
            number of ranks.
    """
    with comm.together("opening the data set"):
        grid = grid or ProcessGrid(comm.size, 1)
        source = open_source(options, seed, grid.coordinates(comm.rank)[0], grid.rows)
    shards = _read_shards(source, options, comm, seed, grid)
    check_batch(options.batch_size, shards[0].total)
    standardize = source.standardize if options.standardize is None else options.standardize
    with comm.together("checking the data"):
        kind = choose_kind(standardize, shards[0].inputs.shape[1:])
        check_augment(options.augment, shards[0].inputs.shape[1:])
        for shard in shards:
            _refuse_not_finite(shard)
    inferred = options.target != INPUTS and (options.task or source.task) is None
    task, labels = _task(shards, options, source, comm)
    counted = _column_block(len(shards[0].inputs), comm, grid).slice
    scaling = fit(shards[0].inputs[counted], kind, comm)
    inputs = [scaling.apply(shard.inputs) for shard in shards]
    if options.target == INPUTS:
        outputs = inputs[0][0].size
        made = Made([array.reshape(len(array), outputs) for array in inputs], outputs, {"target": INPUTS})
    elif task == "classification":
        made = _classes(shards, labels, options.classes or source.classes, comm)
    else:
        scale_targets = options.standardize_targets
        made = _values(shards, counted, bool(standardize) if scale_targets is None else scale_targets, comm)
    facts = {"source": options.source, **source.facts, "task_inferred": inferred}
    facts |= {"train_samples": shards[0].total, "test_samples": shards[1].total if len(shards) > 1 else 0}
    facts |= {"standardize": kind, **_scaling_facts(scaling, shards[0].inputs, "input"), **made.facts}
    return _assembled(shards, inputs, made, task, options.source, facts)


def _task(shards: list[Shard], options: DataOptions, source: Source, comm: Communicator) -> tuple[str, Any]:
    """What is to be learned, and the distinct labels if there are any. *Collective*."""
    if options.target == INPUTS:
        return "regression", None
    told = options.task or source.task
    labels = distinct_labels(shards[0].targets, comm) if told != "regression" else None
    return told or infer_task(labels), labels


def _assembled(
    shards: list[Shard], inputs: list[np.ndarray], made: Made, task: str, name: str, facts: dict[str, Any]
) -> DataSet:
    """The training part, and the test part if there is one."""
    parts = [
        Part(array, targets, shard.start, shard.total)
        for array, shard, targets in zip(inputs, shards, made.targets, strict=True)
    ]
    classes, shape = made.outputs if task == "classification" else 0, shards[0].inputs.shape[1:]
    test = parts[1] if len(parts) > 1 else None
    return DataSet(parts[0], test, task, classes, made.outputs, shape, name, facts)


def _read_shards(source: Source, options: DataOptions, comm: Communicator, seed: int, grid: ProcessGrid) -> list[Shard]:
    """This rank's shard of the training set and, if there is one, of the test set. *Collective*."""
    if options.test is False:
        source.test = None
    _check_sources(source, comm)
    if source.sharded:
        _refuse_cuts(options)
        readers = [reader for reader in (source.train, source.test) if reader is not None]
        plans = [_own_rows(reader, comm, grid, shared=reader is source.train) for reader in readers]
        _refuse_empty(comm.allgather_objects(source.train.rows, label="data"), options.source)
    else:
        readers, plans = _dealt_rows(source, options, comm, seed, grid)
    with comm.together("reading the data"):
        shards = [
            Shard(*read_rows(reader, rows), rows, start, total, reader)
            for reader, (rows, start, total) in zip(readers, plans, strict=True)
        ]
    _check_shards(shards, source, comm)
    return shards


Rows = tuple[np.ndarray, int, int]
"""Rows of a reader that this rank owns, position of the first in the set, samples of the set."""


def _dealt_rows(
    source: Source, options: DataOptions, comm: Communicator, seed: int, grid: ProcessGrid
) -> tuple[list[Reader], list[Rows]]:
    """Whole sets cut into blocks of rows. Local, and fails on all ranks alike."""
    split = split_rows(source, options, seed)
    readers, dealt = [source.train], [split.train]
    if split.test is not None:
        readers, dealt = [source.train, source.train], [split.train, split.test]
    elif source.test is not None:
        readers, dealt = [source.train, source.test], [split.train, np.arange(source.test.rows)]
    if len(split.train) < comm.size:
        limited = f" (data.limit = {options.limit})" if options.limit is not None else ""
        raise UsageError(
            f"The training set has {len(split.train)} samples{limited}, which are not enough for"
            f" {comm.size} ranks: each rank must own at least one. Start fewer ranks or use more samples."
        )
    owned = [block(len(dealt[0]), grid.rows, grid.coordinates(comm.rank)[0])]
    owned += [block(len(rows), comm.size, comm.rank) for rows in dealt[1:]]
    plans = [(rows[mine.slice], mine.start, len(rows)) for rows, mine in zip(dealt, owned, strict=True)]
    return readers, plans


def _own_rows(reader: Reader, comm: Communicator, grid: ProcessGrid, *, shared: bool) -> Rows:
    """Rows of a reader that holds the samples of a row of the grid only: all of them, or a column's part. *Collective*.

    Raises:
        UsageError: on all ranks, when a row's ranks were given different numbers of samples.
    """
    counts = [int(count) for count in comm.allgather_objects(reader.rows, label="data")]
    row, _ = grid.coordinates(comm.rank)
    for ranks in map(grid.row_members, range(grid.rows)):
        if len({counts[rank] for rank in ranks}) > 1:
            raise UsageError(
                f"Ranks {ranks[0]} to {ranks[-1]} share a shard, but the data function gave them"
                f" {', '.join(str(counts[rank]) for rank in ranks)} samples of {reader.name!r} for the same rank and"
                " size. Let it return the same samples whenever it gets the same arguments.",
                collective=True,
            )
    held = [counts[grid.rank(other, 0)] for other in range(grid.rows)]
    mine = Block(0, reader.rows) if shared else _column_block(reader.rows, comm, grid)
    return np.arange(mine.start, mine.stop), sum(held[:row]) + mine.start, sum(held)


def _column_block(count: int, comm: Communicator, grid: ProcessGrid) -> Block:
    """The part of ``count`` samples of a row of the grid that falls to this rank's column."""
    return block(count, grid.columns, grid.coordinates(comm.rank)[1])


def _refuse_empty(counts: list[int], name: str) -> None:
    if min(counts) == 0:
        raise UsageError(
            f"The data function {name!r} returned no training samples on rank {counts.index(0)} (of"
            f" {len(counts)} ranks, {sum(counts)} samples); each rank must own at least one. Start fewer"
            " ranks or deal the samples out evenly."
        )


def _refuse_cuts(options: DataOptions) -> None:
    for key in ("limit", "shuffle", "test"):
        value = getattr(options, key)
        if value not in (None, False):
            raise UsageError(
                f"data.{key} is {value!r}, but the data function {options.source!r} takes rank and size"
                f" and so decides itself which samples each rank has. Leave data.{key} out, or write the"
                " function without rank and size."
            )


def _check_sources(source: Source, comm: Communicator) -> None:
    """Refuse ranks that see different files, as happens with folders local to a machine. *Collective*."""
    whole = not source.sharded
    facts: dict[str, object] = {"the shape of a training sample": source.train.shape}
    if whole:
        facts["the number of training samples"] = source.train.rows
    facts["the test set"] = "there" if source.test else "missing"
    if source.test:
        facts["the shape of a test sample"] = source.test.shape
        if whole:
            facts["the number of test samples"] = source.test.rows
    _refuse_differences(facts, source, comm)


def _check_shards(shards: list[Shard], source: Source, comm: Communicator) -> None:
    """Refuse targets of different widths, and bytes beside other numbers: all ranks scale alike. *Collective*."""
    facts: dict[str, object] = {}
    for part, shard in zip(("training", "test"), shards, strict=False):
        facts[f"the shape of a {part} target"] = shard.targets.shape[1:]
        facts[f"the type of the {part} inputs"] = "bytes" if shard.inputs.dtype == np.uint8 else "numbers"
    _refuse_differences(facts, source, comm)


def _refuse_differences(facts: dict[str, object], source: Source, comm: Communicator) -> None:
    """Refuse ranks of which one knows something else than rank 0. *Collective*."""
    found = first_difference(comm, facts, "data")
    if found is None:
        return
    advice = (
        "A data function must give the same kind of samples and the same parts on every rank."
        if "function" in source.facts
        else "Put the same files on every machine, or in a folder that all of them see."
    )
    raise UsageError(
        f"The ranks see different data: of {source.train.name!r}, {found.what} is {found.first} on rank 0, but"
        f" {found.other} on rank {found.rank}. {advice}",
        collective=True,
    )


def _refuse_not_finite(shard: Shard) -> None:
    """Refuse NaN, infinity and what would be infinite in float32, in inputs and targets."""
    most = np.float64(np.finfo(np.float32).max)  # of its own type, since it is beyond half precision
    for what, array in (("input", shard.inputs), ("target", shard.targets)):
        if array.dtype.kind == "f" and array.size and not (array.min() >= -most and array.max() <= most):
            index = tuple(int(i) for i in np.argwhere(~(np.abs(array) <= most))[0])
            value, place = array[index], index[0]
            flat = int(np.ravel_multi_index(index[1:], array.shape[1:])) if len(index) > 1 else 0
            where = shard.reader.column(flat) if what == "input" else "the target"
            raise UsageError(
                f"Row {shard.rows[place]} of {shard.reader.name!r} (counted from 0) has {value} in {where};"
                " training needs finite numbers, also as float32. Remove the row or fill in the value."
            )


def _classes(shards: list[Shard], labels: np.ndarray | None, known: int | None, comm: Communicator) -> Made:
    """Labels as classes 0 .. C-1. *Collective*."""
    with comm.together("reading the labels"):
        for shard in shards:
            check_labels(shard.targets, shard.rows, shard.reader.name)
    # Labels are missing only where a rank's are not whole numbers, so here every rank has them.
    assert labels is not None
    with comm.together("reading the labels"):
        values = class_values(labels, known)
        targets = [
            to_classes(shard.targets, values, shard.rows, shard.reader.name, known is not None) for shard in shards
        ]
    renamed = not np.array_equal(values, np.arange(len(values)))
    return Made(targets, len(values), {"labels": values.tolist()} if renamed else {})


def _values(shards: list[Shard], counted: slice, scale: bool, comm: Communicator) -> Made:
    """Targets of regression with two axes, scaled if asked for by the training samples ``counted``. *Collective*."""
    raw = [to_values(shard.targets).astype(np.float64) for shard in shards]
    widths = {array.shape[1] for array in raw}
    if len(widths) > 1:
        raise UsageError(
            f"The training set has {raw[0].shape[1]} targets a sample, the test set {raw[1].shape[1]}; both"
            " need the same. Check data.target and data.test."
        )
    scaling = fit(raw[0][counted], "feature" if scale else "none", comm)
    facts = {"standardize_targets": scale, **_scaling_facts(scaling, raw[0], "target")}
    return Made([scaling.apply(array) for array in raw], raw[0].shape[1], facts)


def _scaling_facts(scaling: Scaling, raw: np.ndarray, what: str) -> dict[str, Any]:
    """Mean and scale for the record; those of uint8 pixels in units of 0..1, as is usual."""
    if scaling.kind == "none":
        return {f"{what}_unit": "0..1 from 0..255"} if raw.dtype == np.uint8 else {}
    if scaling.kind == "image":
        return {}
    unit = 255.0 if raw.dtype == np.uint8 else 1.0
    return {
        f"{what}_mean": (scaling.mean / unit).ravel().tolist(),
        f"{what}_scale": (scaling.scale / unit).ravel().tolist(),
        f"{what}_constant": scaling.constant,
    }
