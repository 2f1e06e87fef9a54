"""The same data on any number of ranks: shards, splits, scaling, classes, batches and errors."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hpcopt.comm.communicator import Communicator
from hpcopt.data import cifar
from hpcopt.data.batches import BatchPlan
from hpcopt.data.dataset import DataSet, Part
from hpcopt.data.load import load
from hpcopt.data.options import DataOptions
from hpcopt.errors import UsageError
from hpcopt.layout.block import block
from tests.support.datafiles import labelled, write_cifar10, write_csv

pytestmark = pytest.mark.mpi


def joined(part: Part, comm: Communicator) -> tuple[np.ndarray, np.ndarray]:
    """The whole set from the shards of all ranks, after a check that they follow each other."""
    starts = comm.allgather_objects((part.start, part.count, part.total))
    assert [start for start, _, _ in starts] == list(np.cumsum([0] + [count for _, count, _ in starts])[:-1])
    assert {total for _, _, total in starts} == {sum(count for _, count, _ in starts)}
    pieces = comm.allgather_objects((part.inputs, part.targets))
    return np.concatenate([x for x, _ in pieces]), np.concatenate([y for _, y in pieces])


def assert_same_set(ours: DataSet, theirs: DataSet, comm: Communicator) -> None:
    """Bit for bit: a sample that differs in its last bit would show in a loss curve in float64."""
    for mine, whole in ((ours.train, theirs.train), (ours.test, theirs.test)):
        assert (mine is None) == (whole is None)
        if mine is not None and whole is not None:
            inputs, targets = joined(mine, comm)
            np.testing.assert_array_equal(inputs, whole.inputs)
            np.testing.assert_array_equal(targets, whole.targets)
            assert inputs.dtype == np.float32
    assert (ours.task, ours.classes, ours.outputs, ours.input_shape) == (
        theirs.task,
        theirs.classes,
        theirs.outputs,
        theirs.input_shape,
    )
    assert ours.facts == theirs.facts


def root_writes(comm: Communicator, path: Path, write: Any) -> None:
    """Rank 0 makes a file, the others wait. *Collective*."""
    with comm.together("writing a file"):
        if comm.rank == 0:
            write(path)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"test": 0.3},
        {"test": 5, "shuffle": True},
        {"test": 0.2, "limit": 11, "shuffle": True},
        {"standardize": "global"},
        {"standardize": False},
        {"task": "regression"},
        {"task": "regression", "target": ["x1", "x3"], "test": 0.5},
    ],
    ids=str,
)
def test_shards_join_to_the_set_of_one_rank(
    comm: Communicator, alone: Communicator, shared_path: Path, keys: dict[str, Any]
) -> None:
    """37 rows: uneven shards, sorted by class, features of very different scale."""
    path = shared_path / "set.csv"
    root_writes(comm, path, lambda p: write_csv(p, labelled(37), "label,x1,x2,x3"))
    options = DataOptions(str(path), **keys)
    assert_same_set(load(options, comm, 5), load(options, alone, 5), comm)


@pytest.mark.parametrize("source", ["mnist-5k", "digits", "peaks"])
def test_packaged_sets_are_the_same_on_any_number_of_ranks(
    comm: Communicator, alone: Communicator, source: str
) -> None:
    options = DataOptions(source, standardize=True)
    assert_same_set(load(options, comm, 1), load(options, alone, 1), comm)


def test_scaling_uses_the_samples_of_all_ranks(comm: Communicator, shared_path: Path) -> None:
    """Mean 0 and deviation 1 over all shards, although the shards differ; a constant column is centred only."""
    table = np.column_stack([labelled(53), np.full(53, 4.25)])
    table[:, 1] = np.arange(53.0)  # each shard has a mean of its own
    root_writes(comm, shared_path / "set.csv", lambda p: write_csv(p, table))
    data = load(DataOptions(str(shared_path / "set.csv"), target="first"), comm, 0)
    inputs, _ = joined(data.train, comm)
    np.testing.assert_allclose(inputs[:, :3].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(inputs[:, :3].std(0), 1, atol=1e-6)
    assert not inputs[:, 3].any()
    assert data.facts["input_constant"] == 1


def test_a_rank_reads_only_its_rows_of_an_hdf5_file(
    comm: Communicator, shared_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in bytes at h5py itself; one more row is allowed, from which the type is seen."""
    path, rows = shared_path / "set.h5", 203

    def write(place: Path) -> None:
        with h5py.File(place, "w") as file:
            file["inputs"] = np.arange(rows * 16.0).reshape(rows, 16)
            file["targets"] = np.arange(rows) % 4

    root_writes(comm, path, write)
    taken: list[int] = []
    plain = h5py.Dataset.__getitem__

    def counting(self: Any, *arguments: Any, **keys: Any) -> Any:
        out = plain(self, *arguments, **keys)
        taken.append(np.asarray(out).nbytes)
        return out

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counting)
    data = load(DataOptions(str(path), standardize=False), comm, 0)
    monkeypatch.undo()
    mine = block(rows, comm.size, comm.rank)
    assert sum(taken) <= (mine.count + 1) * 16 * 8 + mine.count * 8
    np.testing.assert_array_equal(data.train.inputs[:, 0], 16.0 * np.arange(mine.start, mine.stop))


def test_a_rank_decodes_only_files_that_overlap_its_shard(
    comm: Communicator, shared_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root_writes(comm, shared_path, lambda p: write_cifar10(p, each=6))
    decoded: list[Path] = []
    plain = cifar.decode_npz
    monkeypatch.setattr(cifar, "decode_npz", lambda path: decoded.append(path) or plain(path))
    data = load(DataOptions("cifar10", root=str(shared_path)), comm, 0)
    mine = block(30, comm.size, comm.rank)
    overlapping = {f"data_batch_{row // 6 + 1}.npz" for row in range(mine.start, mine.stop)}
    assert {path.name for path in decoded} - {"test_batch.npz"} == overlapping
    assert joined(data.train, comm)[1].tolist() == [i % 10 for i in range(30)]


def test_classes_are_agreed_when_ranks_see_different_labels(comm: Communicator, shared_path: Path) -> None:
    """Sorted by label: no rank of several sees all of -5, 2 and 9."""
    table = np.column_stack([np.repeat([-5, 2, 9], 8), np.arange(24.0)])
    root_writes(comm, shared_path / "set.csv", lambda p: write_csv(p, table, "label,x"))
    data = load(DataOptions(str(shared_path / "set.csv")), comm, 0)
    assert joined(data.train, comm)[1].tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert data.classes == 3
    assert data.facts["labels"] == [-5, 2, 9]


def test_batches_of_all_ranks_are_those_of_one(comm: Communicator, alone: Communicator) -> None:
    options = DataOptions("digits", batch=100, overlap=0.25)
    ours, theirs = load(options, comm, 3).train, load(options, alone, 3).train
    plans = [BatchPlan(p.total, p.start, p.count, options.batch_size, 3, options.overlap) for p in (ours, theirs)]
    for number in range(plans[0].per_epoch):
        pieces = comm.allgather_objects(ours.inputs[plans[0].local(1, number)])
        np.testing.assert_array_equal(np.concatenate(pieces), theirs.inputs[plans[1].local(1, number)])


@pytest.mark.parametrize("bad", ["nan", "inf", "seven", ""])
def test_a_bad_value_in_one_shard_is_an_error_of_all_ranks(comm: Communicator, shared_path: Path, bad: str) -> None:
    """Only the last rank's line is bad; all ranks must raise, and name it."""

    def write(path: Path) -> None:
        path.write_text("label,x1,x2\n" + "".join(f"{i % 2},{i},1\n" for i in range(20)) + f"1,2,{bad}\n")

    root_writes(comm, shared_path / "set.csv", write)
    with pytest.raises(UsageError, match=r"Row 20 .*'x2'|Line 22, column 2"):
        load(DataOptions(str(shared_path / "set.csv")), comm, 0)


def test_a_label_out_of_range_in_one_shard_is_an_error_of_all_ranks(comm: Communicator, shared_path: Path) -> None:
    table = np.column_stack([[0, 1] * 10 + [7], np.arange(21.0)])
    root_writes(comm, shared_path / "set.csv", lambda p: write_csv(p, table, "label,x"))
    with pytest.raises(UsageError, match=r"Label out of range: row 20 .* label 7"):
        load(DataOptions(str(shared_path / "set.csv"), classes=2), comm, 0)


def test_a_fractional_label_in_one_shard_is_an_error_of_all_ranks(comm: Communicator, shared_path: Path) -> None:
    """The other shards hold whole numbers, so their ranks see nothing wrong by themselves."""
    table = np.column_stack([[0, 1] * 10 + [0.5], np.arange(21.0)])
    root_writes(comm, shared_path / "set.csv", lambda p: write_csv(p, table, "label,x"))
    with pytest.raises(UsageError, match=r"Row 20 .* target 0.5, which is not a whole number"):
        load(DataOptions(str(shared_path / "set.csv"), task="classification"), comm, 0)


@pytest.mark.mpi(min_size=2)
def test_a_shard_without_a_sample_is_refused_but_an_empty_test_shard_is_not(
    comm: Communicator, shared_path: Path
) -> None:
    """As many samples as ranks train; the test set has one sample fewer, so that the last rank has none."""
    n = comm.size
    for name, rows in (("enough.csv", n), ("few.csv", n - 1)):
        root_writes(comm, shared_path / name, lambda p, rows=rows: write_csv(p, np.ones((rows, 2)) * np.arange(2)))
    enough, few = str(shared_path / "enough.csv"), str(shared_path / "few.csv")
    with pytest.raises(UsageError, match=rf"has {n - 1} samples, which are not enough for {n} ranks"):
        load(DataOptions(few, task="regression"), comm, 0)
    data = load(DataOptions(enough, test=few, task="regression"), comm, 0)
    assert data.train.count == 1
    assert data.test is not None
    assert data.test.count == int(comm.rank < n - 1)
    assert data.test.inputs.shape == (data.test.count, 1)
    data = load(DataOptions(enough, test=few, target="inputs"), comm, 0)
    assert data.test is not None
    assert data.test.targets.shape == data.test.inputs.shape == (data.test.count, 1)


@pytest.mark.mpi(min_size=2)
def test_ranks_that_see_different_files_are_refused(comm: Communicator, shared_path: Path) -> None:
    mine = shared_path / f"rank{comm.rank}.csv"
    write_csv(mine, labelled(20 + comm.rank))
    with pytest.raises(UsageError, match=r"number of training samples is 20 on rank 0, but 21 on rank 1"):
        load(DataOptions(str(mine), target="first"), comm, 0)


@pytest.mark.mpi(min_size=2)
def test_a_file_missing_on_one_rank_is_an_error_of_all(comm: Communicator, shared_path: Path) -> None:
    mine = shared_path / f"rank{comm.rank}.csv"
    if comm.rank != 1:
        write_csv(mine, labelled(20))
    with pytest.raises(UsageError, match=r"on rank 1 .*does not exist"):
        load(DataOptions(str(mine), target="first"), comm, 0)


def from_module(monkeypatch: pytest.MonkeyPatch, function: Any) -> str:
    """The name under which a job file would name a function."""
    module = types.ModuleType("user_data_module")
    module.load = function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "user_data_module", module)
    return "user_data_module:load"


def test_a_function_with_start_and_count_is_asked_for_the_shard_only(
    comm: Communicator, alone: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def slices(start: int, count: int) -> tuple[np.ndarray, np.ndarray, int]:
        asked.append((start, count))
        rows = np.arange(start, start + count)
        return rows[:, None] * np.array([1.0, 2.0]), rows % 3, 31

    options = DataOptions(from_module(monkeypatch, slices))
    ours = load(options, comm, 0)
    mine = block(31, comm.size, comm.rank)
    assert asked == [(0, 0), (mine.start, mine.count)]
    assert_same_set(ours, load(options, alone, 0), comm)


def test_a_function_with_rank_and_size_gives_unequal_shards(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shard(rank: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        return np.full((rank + 2, 2), float(rank)), np.arange(rank + 2) % 2

    data = load(DataOptions(from_module(monkeypatch, shard), standardize=False), comm, 0)
    inputs, _ = joined(data.train, comm)
    assert inputs[:, 0].tolist() == [float(r) for r in range(comm.size) for _ in range(r + 2)]
    with pytest.raises(UsageError, match=r"data.limit is 3, but the data function .* decides itself"):
        load(DataOptions(from_module(monkeypatch, shard), limit=3), comm, 0)


@pytest.mark.mpi(min_size=2)
def test_a_function_that_leaves_a_rank_without_samples_is_refused(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shard(rank: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        return np.ones((0 if rank == 1 else 3, 2)), np.zeros(0 if rank == 1 else 3)

    with pytest.raises(UsageError, match="no training samples on rank 1"):
        load(DataOptions(from_module(monkeypatch, shard)), comm, 0)


NUMBERS, LABELS = np.ones((4, 3)), np.arange(4) % 2
DIFFERING = {
    "a test set on one rank only": (
        (NUMBERS, LABELS),
        ((NUMBERS, LABELS), (NUMBERS, LABELS)),
        "the test set is missing on rank 0, but there on rank 1",
    ),
    "other features": (
        (NUMBERS, LABELS),
        (np.ones((4, 2)), LABELS),
        r"the shape of a training sample is \(3,\) on rank 0, but \(2,\) on rank 1",
    ),
    "other features of the test set": (
        ((NUMBERS, LABELS), (np.ones((0, 3)), LABELS[:0])),
        ((NUMBERS, LABELS), (np.ones((0, 2)), LABELS[:0])),
        r"the shape of a test sample is \(3,\) on rank 0, but \(2,\) on rank 1",
    ),
    "more targets": (
        (NUMBERS, np.ones((4, 2))),
        (NUMBERS, np.ones((4, 3))),
        r"the shape of a training target is \(2,\) on rank 0, but \(3,\) on rank 1",
    ),
    "pixels as bytes": (
        (NUMBERS, LABELS),
        (NUMBERS.astype(np.uint8), LABELS),
        "the type of the training inputs is numbers on rank 0, but bytes on rank 1",
    ),
}


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("case", DIFFERING)
def test_a_function_that_gives_ranks_different_things_is_refused(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """No rank may wait for another one in a collective call of a part that only one of them has."""
    first, second, says = DIFFERING[case]

    def shard(rank: int, size: int) -> Any:
        return second if rank == 1 else first

    with pytest.raises(UsageError, match=says):
        load(DataOptions(from_module(monkeypatch, shard)), comm, 0)
