"""Arrays that are spread over the ranks: saved in blocks, read back in others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from hpcopt.checkpoint.arrays import PIECE_BYTES
from hpcopt.checkpoint.manifest import rank_file
from hpcopt.checkpoint.restore import restore
from hpcopt.checkpoint.store import CheckpointStore
from hpcopt.checkpoint.stored import StoredCheckpoint
from hpcopt.errors import CheckpointError, UsageError
from hpcopt.layout.block import blocks
from hpcopt.layout.grid import ProcessGrid
from hpcopt.layout.partitioned import Partitioned
from tests.support.simulated import on_ranks

WEIGHT = torch.arange(7 * 11, dtype=torch.float64).reshape(7, 11)
BIAS = np.arange(11, dtype=np.float32)
LARGE = np.random.default_rng(1).standard_normal((5, PIECE_BYTES // 16))
GRIDS = [(1, 1), (2, 1), (1, 3), (2, 2), (3, 2)]


def block_of(array: Any, grid: Sequence[int], rank: int) -> Partitioned:
    """The block of a matrix on a grid of ranks."""
    row, column = ProcessGrid(*grid).coordinates(rank)
    rows, columns = blocks(array.shape[0], grid[0])[row], blocks(array.shape[1], grid[1])[column]
    data = array[rows.start : rows.stop, columns.start : columns.stop]
    return Partitioned(data, tuple(array.shape), (rows.start, columns.start))


def bias_of(array: Any, grid: Sequence[int], rank: int) -> Partitioned:
    """A vector that the ranks of the first row share; the others hold nothing of it."""
    row, column = ProcessGrid(*grid).coordinates(rank)
    part = blocks(len(array), grid[1])[column]
    stop = part.stop if row == 0 else part.start
    return Partitioned(array[part.start : stop], (len(array),), (part.start,))


def contents(grid: Sequence[int], rank: int) -> dict[str, Any]:
    return {
        "model/weight": block_of(WEIGHT, grid, rank),
        "model/bias": bias_of(BIAS, grid, rank),
        "model/large": block_of(LARGE, grid, rank),
        "solver/damping": 0.5,
    }


def save(directory: Path, grid: Sequence[int]) -> Path:
    def work(comm: Any) -> Path:
        return CheckpointStore(comm, directory).save(3, contents(grid, comm.rank)).path

    return on_ranks(grid[0] * grid[1], work)[0]


def test_what_several_ranks_hold_is_written_by_one_and_read_by_all(tmp_path: Path) -> None:
    """Two replicas of a grid of two ranks, of which the first saves."""

    def work(comm: Any) -> None:
        replica, place = divmod(comm.rank, 2)
        held = block_of(WEIGHT, (1, 2), place)._replace(saved=replica == 0)
        path = CheckpointStore(comm, tmp_path).save(3, {"model/weight": held}).path
        with StoredCheckpoint(path) as stored:
            (written,) = [item for name, item in stored.manifest.replicated.items() if name == "model/weight"]
        assert [part.count for part in written.parts] == [(7, 6), (7, 5), (0, 6), (0, 5)]
        into = Partitioned(torch.zeros_like(held.data), held.shape, held.start, held.saved)
        restore(comm, path, {"model/weight": into})
        assert torch.equal(into.data, held.data)

    on_ranks(4, work)


@pytest.mark.parametrize("after", GRIDS)
@pytest.mark.parametrize("before", GRIDS)
def test_any_grid_goes_on_with_what_another_grid_saved(tmp_path: Path, before: tuple, after: tuple) -> None:
    path = save(tmp_path, before)

    def work(comm: Any) -> None:
        wanted = contents(after, comm.rank)
        into = {
            name: Partitioned(torch.zeros_like(torch.as_tensor(block.data)), block.shape, block.start)
            for name, block in wanted.items()
            if isinstance(block, Partitioned)
        }
        restored = restore(comm, path, into)
        for name, block in into.items():
            assert torch.equal(block.data, torch.as_tensor(wanted[name].data)), name
            assert restored.replicated[name] is block
        assert restored.replicated["solver/damping"] == 0.5

    on_ranks(after[0] * after[1], work)


def test_it_can_be_read_whole_without_ranks(tmp_path: Path) -> None:
    with StoredCheckpoint(save(tmp_path, (2, 2))) as stored:
        assert np.array_equal(stored.replicated("model/weight"), WEIGHT.numpy())
        assert np.array_equal(stored.replicated("model/bias"), BIAS)
        assert np.array_equal(stored.replicated("model/large"), LARGE)


def test_a_file_says_where_its_block_lies(tmp_path: Path) -> None:
    path = save(tmp_path, (2, 2))
    with h5py.File(path / rank_file(3)) as file:
        place = dict(file["model/weight"].attrs)
        assert file["model/weight"][:].tolist() == WEIGHT[4:, 6:].tolist()
    found = {name: tuple(place[name]) for name in ("global_shape", "start", "count")}
    assert found == {"global_shape": (7, 11), "start": (4, 6), "count": (3, 5)}


def test_a_rank_needs_only_the_files_that_hold_a_piece_of_its_block(tmp_path: Path) -> None:
    path = save(tmp_path, (2, 1))
    with h5py.File(path / rank_file(1), "r+") as file:
        file["model/weight"][0, 0] += 1.0
    with StoredCheckpoint(path) as stored:
        first, second = (block_of(torch.zeros(7, 11, dtype=torch.float64), (2, 1), rank) for rank in range(2))
        stored.read_into("model/weight", first)
        assert torch.equal(first.data, WEIGHT[:4])
        with pytest.raises(CheckpointError, match=r"'model/weight' in rank0001.h5: its values are not those"):
            stored.read_into("model/weight", second)


def test_a_block_of_another_array_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, (2, 1))
    with StoredCheckpoint(path) as stored:
        for block in (
            Partitioned(np.zeros((2, 2)), (7, 12), (0, 0)),
            Partitioned(np.zeros((2, 2), np.float32), (7, 11), (0, 0)),
        ):
            with pytest.raises(UsageError, match="belongs to another model or method"):
                stored.read_into("model/weight", block)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (Partitioned(np.zeros((2, 3)), (4, 3), (3, 0)), "does not lie within"),
        (Partitioned(np.zeros((2, 3)), (4, 3), (-1, 0)), "does not lie within"),
        (Partitioned(np.zeros(3), (4, 3), (0, 0)), "does not lie within"),
        (Partitioned(1.0, (), ()), "does not lie within"),
        (Partitioned(np.zeros((2, 3)), (4, 3), (0, 0)), "have 6 elements, but an array of shape"),
    ],
)
def test_blocks_that_make_up_no_array_are_refused(tmp_path: Path, block: Partitioned, words: str) -> None:
    def work(comm: Any) -> None:
        store = CheckpointStore(comm, tmp_path / "checkpoints")
        with pytest.raises(UsageError, match=words):
            store.save(1, {"w": block})
        assert store.save(2, {"w": 1.0}).path.exists()

    on_ranks(1, work)
