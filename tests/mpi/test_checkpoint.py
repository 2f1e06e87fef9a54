"""Checkpoints written and read by the ranks of a real job: ``mpirun -n 4 pytest --with-mpi`` covers all pairs to 4."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcopt.checkpoint.folder import published_steps
from hpcopt.checkpoint.restore import newest_valid, restore
from hpcopt.checkpoint.store import CheckpointStore
from hpcopt.checkpoint.verify import verify
from hpcopt.checkpoint.writer import Point
from hpcopt.comm.communicator import Communicator
from hpcopt.errors import CheckpointError, NoValidCheckpointError, UsageError
from tests.support.checkpoints import SMALL, list_valid, own, replicated, same
from tests.support.refusals import files_up_to

pytestmark = pytest.mark.mpi


def on_first(comm: Communicator, ranks: int) -> Communicator:
    """The first ``ranks`` ranks as a group of their own; the rest form another one. *Collective*."""
    return comm.split(int(comm.rank >= ranks))


def test_saved_on_some_ranks_and_read_on_others(comm: Communicator, shared_path: Path) -> None:
    for saving in range(1, comm.size + 1):
        group = on_first(comm, saving)
        if comm.rank < saving:
            store = CheckpointStore(group, shared_path / str(saving))
            saved = store.save(saving, replicated(saving), own(comm.rank), best=True)
            assert verify(saved.path) == []
        group.free()
    comm.barrier()
    for reading in range(1, comm.size + 1):
        group = on_first(comm, reading)
        if comm.rank < reading:
            for saving in range(1, comm.size + 1):
                check(group, shared_path / str(saving), saving)
        group.free()
        comm.barrier()


def check(comm: Communicator, directory: Path, saving: int) -> None:
    """What ``saving`` ranks saved is what the ranks of ``comm`` read. *Collective*."""
    stored = newest_valid(comm, directory)
    assert stored is not None
    weight = torch.zeros(531, 257, dtype=torch.float64)
    found = restore(comm, stored, {"model/fc1/weight": weight})
    assert (found.step, found.ranks) == (saving, saving)
    content = replicated(saving)
    assert found.replicated.keys() == content.keys()
    assert all(same(found.replicated[name], value) for name, value in content.items())
    assert torch.equal(weight, content["model/fc1/weight"])
    if saving == comm.size:
        assert found.own is not None
        assert all(same(found.own[name], value) for name, value in own(comm.rank).items())
    else:
        assert found.own is None


@pytest.mark.parametrize("point", [Point.OPENED, Point.HALFWAY, Point.CLOSED])
def test_a_rank_that_cannot_write_is_the_same_error_everywhere(
    comm: Communicator, shared_path: Path, point: Point
) -> None:
    last = comm.size - 1

    def fail(passed: Point) -> None:
        if passed is point and comm.rank == last and failing:
            raise OSError(28, "No space left on device")

    failing = False
    store = CheckpointStore(comm, shared_path, passing=fail)
    store.save(1, SMALL)
    failing = True
    with pytest.raises(CheckpointError) as found:
        store.save(2, SMALL)
    assert len(set(comm.allgather_objects(str(found.value)))) == 1
    assert "step-00000002 could not be written: No space left on device" in str(found.value)
    assert sorted(os.listdir(shared_path)) == ["latest", "run", "step-00000001"]
    comm.barrier()
    failing = False
    assert verify(store.save(2, SMALL).path) == []


@pytest.mark.mpi(min_size=2)
def test_a_limit_of_the_file_size_on_one_rank(comm: Communicator, shared_path: Path) -> None:
    store = CheckpointStore(comm, shared_path)
    with (
        files_up_to(100_000) if comm.rank == 1 else nullcontext(),
        pytest.raises(CheckpointError, match=r"on rank 1 .*File too large"),
    ):
        store.save(1, {"w": np.zeros(10**6)})
    assert published_steps(shared_path) == []
    assert verify(store.save(1, {"w": np.zeros(10**6)}).path) == []


def test_leftovers_and_a_folder_without_a_manifest_stop_nobody(comm: Communicator, shared_path: Path) -> None:
    store = CheckpointStore(comm, shared_path)
    store.save(1, SMALL)
    if comm.rank == 0:
        (shared_path / ".step-00000002.0123ab.tmp").mkdir()
        (shared_path / ".step-00000002.0123ab.tmp" / "rank0000.h5").write_text("half")
        (shared_path / "step-00000002").mkdir()
    comm.barrier()
    store = CheckpointStore(comm, shared_path)
    stored = newest_valid(comm, shared_path)
    assert stored is not None
    assert stored.step == 1
    store.save(2, SMALL)
    store.save(2, SMALL)
    assert len(list_valid(shared_path)) == 2
    expected = ["latest", "run", "step-00000001", "step-00000002", "step-00000002.bad"]
    assert sorted(os.listdir(shared_path)) == expected


def test_damage_makes_all_ranks_fall_back_and_then_stop(
    comm: Communicator, shared_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(comm, shared_path)
    paths = [store.save(step, SMALL).path for step in (1, 2)]
    for path, expected in zip(reversed(paths), (1, None), strict=True):
        comm.barrier()
        if comm.rank == 0:
            with open(path / f"rank{comm.size - 1:04d}.h5", "r+b") as file:
                file.write(b"damaged")
        comm.barrier()
        if expected is None:
            with pytest.raises(NoValidCheckpointError) as found:
                newest_valid(comm, shared_path)
            assert found.value.exit_status == 4
        else:
            with caplog.at_level(logging.WARNING):
                stored = newest_valid(comm, shared_path)
            assert stored is not None
            assert stored.step == expected
            assert len(caplog.records) == (comm.rank == 0)


@pytest.mark.mpi(min_size=2)
def test_ranks_that_would_save_different_things_are_told(comm: Communicator, shared_path: Path) -> None:
    store = CheckpointStore(comm, shared_path)
    with pytest.raises(UsageError, match="about to save different things"):
        store.save(1, {"w": np.zeros(3 + (comm.rank == 1))})
    with pytest.raises(UsageError, match="'own/w'"):
        store.save(1, {"own/w": 1} if comm.rank == 1 else {})
    assert published_steps(shared_path) == []
