"""Data for a grid of ranks: a row shares a shard of the training set, the test set is spread over all ranks."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from hpcopt.comm.communicator import Communicator
from hpcopt.data.load import load
from hpcopt.data.options import DataOptions
from hpcopt.errors import UsageError
from hpcopt.layout.block import block
from hpcopt.layout.grid import ProcessGrid
from tests.support.datafiles import labelled, write_csv
from tests.support.grids import divides

pytestmark = pytest.mark.mpi


@pytest.fixture(params=[1, 2, 3, 4])
def grid(request: pytest.FixtureRequest, comm: Communicator) -> ProcessGrid:
    divides(comm, request.param)
    return ProcessGrid(request.param, comm.size // request.param)


@pytest.mark.parametrize(
    "keys", [{}, {"standardize": "global"}, {"test": 0.3, "shuffle": True}, {"task": "regression", "test": 7}], ids=str
)
def test_rows_hold_the_shards_of_so_many_ranks_scaled_as_on_one(
    comm: Communicator, grid: ProcessGrid, shared_path: Path, keys: dict[str, Any]
) -> None:
    path = shared_path / "set.csv"
    with comm.together("writing a file"):
        if comm.rank == 0:
            write_csv(path, labelled(37), "label,x1,x2,x3")
    options = DataOptions(str(path), **keys)
    ours, whole = load(options, comm, 5, grid), load(options, Communicator(MPI.COMM_SELF), 5)
    mine = block(whole.train.total, grid.rows, grid.coordinates(comm.rank)[0])
    assert (ours.train.start, ours.train.total) == (mine.start, whole.train.total)
    np.testing.assert_array_equal(ours.train.inputs, whole.train.inputs[mine.slice])
    np.testing.assert_array_equal(ours.train.targets, whole.train.targets[mine.slice])
    assert ours.facts == whole.facts
    if whole.test is not None and ours.test is not None:
        part = block(whole.test.total, comm.size, comm.rank)
        assert (ours.test.start, ours.test.total) == (part.start, whole.test.total)
        np.testing.assert_array_equal(ours.test.inputs, whole.test.inputs[part.slice])


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("own_grid_data")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_a_function_with_rank_and_size_is_asked_for_rows(
    comm: Communicator, grid: ProcessGrid, own_module: types.ModuleType
) -> None:
    train, test = np.arange(40.0).reshape(20, 2), np.arange(100.0, 122.0).reshape(11, 2)

    def read(rank: int, size: int) -> Any:
        parts = [block(20, size, rank).slice, block(11, size, rank).slice]
        return (train[parts[0]], train[parts[0], 0]), (test[parts[1]], test[parts[1], 0])

    own_module.read = read  # type: ignore[attr-defined]
    data = load(DataOptions("own_grid_data:read", task="regression", standardize=False), comm, 0, grid)
    mine = block(20, grid.rows, grid.coordinates(comm.rank)[0])
    np.testing.assert_array_equal(data.train.inputs, train[mine.slice])
    assert (data.train.start, data.train.total) == (mine.start, 20)
    assert data.test is not None
    pieces = comm.allgather_objects((data.test.start, data.test.inputs))
    np.testing.assert_array_equal(np.concatenate([inputs for _, inputs in pieces]), test)
    assert [start for start, _ in pieces] == np.cumsum([0] + [len(inputs) for _, inputs in pieces])[:-1].tolist()


@pytest.mark.mpi(min_size=2)
def test_a_function_that_gives_a_row_different_numbers_of_samples_is_refused(
    comm: Communicator, own_module: types.ModuleType
) -> None:
    own_module.read = lambda rank, size: (np.ones((4 + comm.rank, 2)), np.ones(4 + comm.rank))  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"share a shard, but the data function gave them 4, 5"):
        load(DataOptions("own_grid_data:read", task="regression"), comm, 0, ProcessGrid(1, comm.size))
