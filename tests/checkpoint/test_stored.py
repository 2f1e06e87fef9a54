from __future__ import annotations

import dataclasses
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hpcopt.checkpoint import stored as stored_module
from hpcopt.checkpoint.manifest import FILE_NAME, SCHEMA, rank_file
from hpcopt.checkpoint.stored import StoredCheckpoint
from hpcopt.checkpoint.verify import verify
from hpcopt.errors import CheckpointError, UsageError
from tests.support.checkpoints import own, replicated, same, write

DATA = Path(__file__).parents[1] / "data" / "checkpoints"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (saved,) = write(tmp_path_factory.mktemp("run"), [5], ranks=3)
    return saved.path


def test_everything_comes_back_to_the_last_bit(path: Path) -> None:
    with StoredCheckpoint(path) as stored:
        content = replicated(5)
        assert (stored.step, stored.ranks) == (5, 3)
        assert stored.names() == sorted(content)
        assert all(same(stored.replicated(name), value) for name, value in content.items())
        assert stored.scalars == {
            name: value for name, value in content.items() if isinstance(value, (int, float, str))
        }
        for rank in range(3):
            assert stored.own_names(rank) == sorted(own(rank))
            assert all(same(stored.own(rank, name), value) for name, value in own(rank).items())


def test_arrays_are_read_into_memory_that_is_there(path: Path) -> None:
    with StoredCheckpoint(path) as stored:
        for name, value in replicated(5).items():
            if isinstance(value, (bool, int, float, str)):
                with pytest.raises(KeyError, match="is a scalar"):
                    stored.read_into(name, np.zeros(()))
                continue
            target = torch.nn.Parameter(torch.zeros_like(torch.as_tensor(value)), requires_grad=False)
            stored.read_into(name, target)
            assert same(target.numpy(), value)
            array = np.zeros_like(np.asarray(value))
            stored.read_into(name, array)
            assert same(array, value)


def test_memory_of_another_shape_or_type_is_refused_untouched(path: Path) -> None:
    with StoredCheckpoint(path) as stored:
        for target in (torch.full((7,), 9.0).double(), torch.full((8,), 9.0), torch.full((7, 1), 9.0)):
            with pytest.raises(UsageError, match=r"saved as float32 of shape \(7,\) and cannot be read into float"):
                stored.read_into("model/fc1/bias", target)
            assert (target == 9).all()


def test_names_that_are_not_there_are_key_errors(path: Path) -> None:
    with StoredCheckpoint(path) as stored:
        for ask in (
            lambda: stored.replicated("w"),
            lambda: stored.own(0, "extra/only_here"),
            lambda: stored.own(3, "gradient"),
            lambda: stored.own_names(-1),
        ):
            with pytest.raises(KeyError):
                ask()


def test_the_files_explain_themselves(path: Path) -> None:
    with h5py.File(path / rank_file(1)) as file:
        root = dict(file.attrs)
        assert (root["format"], root["schema"]) == ("hpcopt checkpoint", SCHEMA)
        assert (root["step"], root["rank"], root["ranks"]) == (5, 1, 3)
        assert len(root["run"]) == 32
        assert file["own/seconds"].attrs["unit"] == "s"
        weight = file["model/fc1/weight"]
        assert weight.chunks is None
        assert [list(weight.attrs[name]) for name in ("global_shape", "start", "count")] == [
            [531, 257],
            [177, 0],
            [177, 257],
        ]
    with h5py.File(path / rank_file(0)) as file:
        assert dict(file["solver/radius"].attrs) == {"unit": "1", "meaning": "trust-region radius"}


def test_large_arrays_are_shared_out_and_nothing_is_written_twice(path: Path) -> None:
    sizes = [(path / rank_file(rank)).stat().st_size for rank in range(3)]
    content = sum(np.asarray(value).nbytes for value in replicated(5).values() if not isinstance(value, (int, str)))
    assert max(sizes) < 1.1 * min(sizes)
    assert content <= sum(sizes) < content + 3 * 64_000


def test_a_part_that_is_missing_or_zeroed_is_never_read_as_zeros(tmp_path: Path) -> None:
    (saved,) = write(tmp_path, ranks=3)
    place = saved.path / rank_file(2)
    with h5py.File(place, "r+") as file:
        file["model/fc1/weight"][...] = 0
        del file["model/fc1/transposed"]
    with StoredCheckpoint(saved.path) as stored:
        with pytest.raises(CheckpointError, match=r"'model/fc1/weight' in rank0002.h5: its values are not those"):
            stored.replicated("model/fc1/weight")
        with pytest.raises(CheckpointError, match=r"'model/fc1/transposed' in rank0002.h5: it cannot be opened"):
            stored.replicated("model/fc1/transposed")
    place.unlink()
    with StoredCheckpoint(saved.path) as stored:
        with pytest.raises(CheckpointError, match=r"in rank0002.h5: it cannot be opened"):
            stored.replicated("model/fc1/weight")
        assert same(stored.replicated("model/fc1/bias"), replicated(1)["model/fc1/bias"])


def test_a_scalar_that_was_changed_is_noticed(tmp_path: Path) -> None:
    (saved,) = write(tmp_path)
    with h5py.File(saved.path / rank_file(0), "r+") as file:
        file["solver/radius"][()] = 7.0
    with StoredCheckpoint(saved.path) as stored, pytest.raises(CheckpointError, match="its value is not the one"):
        stored.replicated("solver/radius")


def test_a_manifest_that_leaves_out_a_part_is_noticed(tmp_path: Path) -> None:
    (saved,) = write(tmp_path)
    with StoredCheckpoint(saved.path) as stored:
        item = stored.describe("model/fc1/weight")
        short = dataclasses.replace(item, parts=item.parts[:1])
        stored.manifest = dataclasses.replace(stored.manifest, replicated={"model/fc1/weight": short})
        with pytest.raises(CheckpointError, match="does not say where all of"):
            stored.replicated("model/fc1/weight")


def test_a_folder_without_a_sound_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no manifest"):
        StoredCheckpoint(tmp_path)
    (tmp_path / FILE_NAME).write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        StoredCheckpoint(tmp_path)


@pytest.fixture(params=range(1, SCHEMA + 1))
def of_every_schema(request: pytest.FixtureRequest) -> Path:
    """The same content as each version of the format wrote it."""
    return DATA / f"schema-{request.param}" / "step-00000007"


def test_a_checkpoint_of_any_schema_opens(of_every_schema: Path) -> None:
    assert verify(of_every_schema) == []
    with StoredCheckpoint(of_every_schema) as stored:
        assert (stored.step, stored.ranks, stored.run) == (7, 2, "0123456789abcdef0123456789abcdef")
        assert stored.replicated("model/weight").tolist() == [[0.0, 0.5, 1.0], [1.5, 2.0, 2.5]]
        assert stored.replicated("model/weight").dtype == np.float32
        assert stored.replicated("model/mask").tolist() == [True, False]
        assert stored.scalars == {"loop/iteration": 7, "loop/phase": "growth", "solver/radius": 0.25}
        assert [stored.own(rank, "random/state").tolist() for rank in range(2)] == [[0], [0, 1]]


def test_a_changed_value_is_noticed_in_any_schema(of_every_schema: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(of_every_schema, tmp_path / of_every_schema.name)
    with h5py.File(copy / rank_file(0), "r+") as file:
        file["model/mask"][0] = False
        file["solver/radius"][()] = 0.5
    with StoredCheckpoint(copy) as stored:
        for name in ("model/mask", "solver/radius"):
            with pytest.raises(CheckpointError, match=f"damaged at '{name}'"):
                stored.replicated(name)


@contextmanager
def more_files(number: int) -> Iterator[None]:
    """Within this block the process can open so many more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(number)]
    free = os.open(os.devnull, os.O_RDONLY)
    for descriptor in (*taken, free):
        os.close(descriptor)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_more_files_are_open_than_a_process_can_spare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (saved,) = write(tmp_path, ranks=6)
    monkeypatch.setattr(stored_module, "MOST_OPEN_FILES", 2)
    with StoredCheckpoint(saved.path) as stored, more_files(3):
        for _ in range(2):
            assert all(same(stored.own(rank, name), value) for rank in range(6) for name, value in own(rank).items())
        assert all(same(stored.replicated(name), value) for name, value in replicated(1).items())


def test_the_file_that_was_used_longest_ago_is_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_module, "MOST_OPEN_FILES", 2)
    opened = []
    plain = h5py.File
    monkeypatch.setattr(h5py, "File", lambda path, *args, **kwargs: opened.append(path) or plain(path, *args, **kwargs))
    with StoredCheckpoint(path) as stored:
        for rank in (0, 1, 0, 2, 0, 1):
            stored.own(rank, "seconds")
    assert opened == [path / rank_file(rank) for rank in (0, 1, 2, 1)]


def test_too_many_open_files_are_no_damage(path: Path) -> None:
    stored = StoredCheckpoint(path)
    verify(path)
    for look in (lambda: stored.own(1, "seconds"), lambda: StoredCheckpoint(path), lambda: verify(path)):
        with more_files(0), pytest.raises(UsageError, match=r"too many files open\. That is no damage"):
            look()
    with stored, more_files(1):
        assert stored.own(1, "seconds") == 0.5
