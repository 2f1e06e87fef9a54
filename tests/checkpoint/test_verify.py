from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from hpcopt.checkpoint import verify as module
from hpcopt.checkpoint.folder import RUN
from hpcopt.checkpoint.manifest import FILE_NAME, read_manifest
from hpcopt.checkpoint.verify import damaged, verify
from tests.support.checkpoints import list_valid, make_later_schema, write_small
from tests.support.refusals import denied

TRIALS = 40


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    write_small(directory, [1, 2])
    return directory / "step-00000001"


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made.parent, tmp_path / "checkpoints")
    return tmp_path / "checkpoints" / made.name


def extents(file: Path) -> dict[str, list[tuple[int, int]]]:
    """Ranges of bytes of a rank's file by what lies in them."""
    size = file.stat().st_size
    with h5py.File(file) as content:
        names: list[str] = []
        content.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        data = []
        for name in names:
            if (offset := content[name].id.get_offset()) is not None:
                data.append((offset, offset + content[name].nbytes))
    raw = file.read_bytes()
    texts = [b"hpcopt checkpoint", b"global_shape", b"meaning"]
    attributes = [(place, place + len(text)) for text in texts if (place := raw.find(text)) > 0]
    # Large arrays begin on a page: what HDF5 leaves before them belongs to nothing, but to the file.
    padding = [(start - 64, start) for start, _ in data if start % 4096 == 0 and not any(raw[start - 64 : start])]
    return {
        "superblock": [(0, 48)],
        "attributes": attributes,
        "data": data,
        "padding": padding,
        "end": [(size - 8, size)],
    }


def flip(file: Path, place: int, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


@pytest.mark.parametrize("region", ["superblock", "attributes", "data", "padding", "end"])
def test_a_flipped_bit_anywhere_in_a_file_is_found_and_the_file_named(path: Path, region: str) -> None:
    choose = random.Random(region)
    for _ in range(TRIALS):
        file = path / choose.choice(["rank0000.h5", "rank0001.h5"])
        original = file.read_bytes()
        start, stop = choose.choice(extents(file)[region])
        flip(file, choose.randrange(start, stop), choose.randrange(8))
        (found,) = verify(path)
        assert (found.path, found.what) == (file, "is damaged: its content is not what was written")
        file.write_bytes(original)
        assert verify(path) == []


def test_a_flipped_bit_in_the_manifest_is_found(path: Path) -> None:
    choose = random.Random(7)
    file = path / "manifest.json"
    original = file.read_bytes()
    for _ in range(TRIALS):
        flip(file, choose.randrange(len(original)), choose.randrange(8))
        (found,) = verify(path)
        assert found.path == file
        assert found.damage
        file.write_bytes(original)
    assert verify(path) == []


@pytest.mark.parametrize("name", ["rank0000.h5", "rank0001.h5", "manifest.json"])
def test_another_length_is_found(path: Path, name: str) -> None:
    file = path / name
    original = file.read_bytes()
    choose = random.Random(name)
    for length in [0, 1, len(original) - 1, *(choose.randrange(len(original)) for _ in range(20))]:
        file.write_bytes(original[:length])
        (found,) = verify(path)
        assert found.path == file
        assert name == "manifest.json" or found.what == f"has {length} bytes instead of {len(original)}"
    file.write_bytes(original + b"\0")
    assert [found.path for found in verify(path)] == [file]


@pytest.mark.parametrize("name", ["rank0000.h5", "rank0001.h5", "manifest.json"])
def test_a_missing_file_is_named(path: Path, name: str) -> None:
    (path / name).unlink()
    assert [str(found) for found in verify(path)] == [f"{path / name}: is missing"]


def test_swapped_files_are_named_with_what_they_hold(path: Path) -> None:
    first, second = path / "rank0000.h5", path / "rank0001.h5"
    os.rename(first, path / "x")
    os.rename(second, first)
    os.rename(path / "x", second)
    assert [str(found) for found in verify(path)] == [
        f"{first}: holds what was saved as rank0001.h5",
        f"{second}: holds what was saved as rank0000.h5",
    ]


def copy_file(source: Path, target: Path) -> Path:
    return Path(shutil.copy(source / "rank0001.h5", target / "rank0001.h5"))


def copy_manifest(source: Path, target: Path) -> Path:
    return Path(shutil.copy(source / "manifest.json", target / "manifest.json"))


def copy_all(source: Path, target: Path) -> Path:
    shutil.rmtree(target)
    return Path(shutil.copytree(source, target))


@pytest.mark.parametrize("copy", [copy_file, copy_manifest, copy_all])
def test_what_comes_from_another_run_is_found(path: Path, tmp_path: Path, copy: Callable[[Path, Path], Path]) -> None:
    (other,) = write_small(tmp_path / "other", shift=1.0)
    copy(other, path)
    findings = verify(path)
    assert damaged(findings)
    expected = {copy_file: "rank0001.h5", copy_manifest: "rank0000.h5", copy_all: "belongs to another run"}[copy]
    assert any(expected in str(found) for found in findings)


@pytest.mark.parametrize("copy", [copy_file, copy_all])
def test_what_comes_from_another_step_is_found(path: Path, copy: Callable[[Path, Path], Path]) -> None:
    copy(path.parent / "step-00000002", path)
    (found,) = verify(path)
    if copy is copy_all:
        assert found.what == "holds step 2, not the one in its name"
    else:
        assert found.path == path / "rank0001.h5"


def test_whole_checkpoints_raise_no_alarm(path: Path) -> None:
    assert list_valid(path.parent) == [path, path.parent / "step-00000002"]
    (path.parent / RUN).unlink()
    assert verify(path) == []
    moved = path.parent.parent / "kept elsewhere"
    os.rename(path, moved)
    assert verify(moved) == [], "a copy of a checkpoint under another name is whole"


def test_a_stranger_is_reported_but_is_no_damage(path: Path) -> None:
    (path / "notes.txt").write_text("the good one")
    (found,) = verify(path)
    assert str(found) == f"{path / 'notes.txt'}: is no part of the checkpoint"
    assert not damaged([found])
    assert path in list_valid(path.parent)


def test_a_later_schema_is_no_damage_but_is_not_whole_either(path: Path) -> None:
    make_later_schema(path)
    (found,) = verify(path)
    assert "later version" in found.what
    assert not found.damage


def test_a_checkpoint_that_goes_while_it_is_read_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = module._sha256

    def remove_first(place: Path) -> str:
        shutil.rmtree(path, ignore_errors=True)
        return whole(place)

    monkeypatch.setattr(module, "_sha256", remove_first)
    assert verify(path) == []
    assert verify(path.parent / "never there") == []


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, fresh = module._sha256, path.parent.parent / "fresh"
    shutil.copytree(path.parent, fresh)
    write_small(fresh, [1], shift=2.0)
    run = read_manifest(path).run
    replaced: list[bool] = []

    def replace_first(place: Path) -> str:
        if not replaced:
            replaced.append(True)
            copy_all(fresh / path.name, path)
        return whole(place)

    monkeypatch.setattr(module, "_sha256", replace_first)
    assert verify(path) == []
    assert replaced
    assert read_manifest(path).run == run


def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = write_small(tmp_path)
    monkeypatch.setattr(Path, "read_bytes", denied)
    monkeypatch.setattr(Path, "exists", denied)  # as in a folder that may not be searched
    assert [str(finding) for finding in verify(path)] == [f"{path / FILE_NAME}: cannot be read: Permission denied"]
