"""CIFAR: .npz files, the official archive and its folder give the same images; a harmful pickle runs nothing."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from hpcopt.data import cifar
from hpcopt.data.cifar import LAYOUTS, open_cifar
from hpcopt.errors import UsageError
from tests.support.datafiles import write_cifar10

ROWS = np.array([0, 3, 4, 17])


def official(images: np.ndarray, labels: np.ndarray, key: bytes = b"labels") -> bytes:
    """A pickle as the official files have it: protocol 2, keys of bytes, rows of 3072 pixels."""
    content = {b"data": images.reshape(len(images), -1), key: labels.tolist(), b"filenames": [b"x.png"] * len(images)}
    return pickle.dumps(content, protocol=2)


def write_archive(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def members(images: np.ndarray, labels: np.ndarray) -> dict[str, bytes]:
    names = LAYOUTS["cifar10"].inner
    return {name: official(images[4 * i : 4 * i + 4], labels[4 * i : 4 * i + 4]) for i, name in enumerate(names)}


@pytest.mark.parametrize("form", ["residual", "plain", "archive", "folder"])
def test_all_forms_give_the_same_images(tmp_path: Path, form: str) -> None:
    images, labels = write_cifar10(tmp_path / "npz", residual=form != "plain")
    root = tmp_path / "npz" if form in ("residual", "plain") else tmp_path / "other"
    if form == "archive":
        root.mkdir()
        write_archive(root / "cifar-10-python.tar.gz", members(images, labels) | {"cifar-10-batches-py/readme": b"hi"})
    if form == "folder":
        for name, content in members(images, labels).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
    source = open_cifar("cifar10", root)
    pixels, classes = source.train.read(ROWS)
    np.testing.assert_array_equal(pixels, images[ROWS])
    assert classes.tolist() == labels[ROWS].tolist()
    assert (source.train.rows, source.train.shape, source.classes) == (20, (3, 32, 32), 10)
    assert source.test is not None
    np.testing.assert_array_equal(source.test.read(np.arange(4))[0], images[20:])


def test_only_files_with_wanted_rows_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path)
    source = open_cifar("cifar10", tmp_path)
    decoded: list[str] = []
    plain = cifar.decode_npz
    monkeypatch.setattr(cifar, "decode_npz", lambda path: decoded.append(path.name) or plain(path))
    source.train.read(np.arange(5, 11))
    assert decoded == ["data_batch_2.npz", "data_batch_3.npz"]
    assert source.train.read(np.array([], int))[0].shape == (0, 3, 32, 32)
    assert len(decoded) == 2


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    images = np.zeros((5, 3, 32, 32), np.uint8)
    for name in LAYOUTS["cifar100"].inner:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(official(images, np.array([99, 1, 2, 3, 4]), b"fine_labels"))
    source = open_cifar("cifar100", tmp_path)
    assert source.train.read(np.arange(2))[1].tolist() == [99, 1]
    assert source.classes == 100


class Harmful:
    """A pickle of this would make a folder while it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_a_program_is_refused(tmp_path: Path) -> None:
    images, labels = write_cifar10(tmp_path / "npz")
    harmful = members(images, labels)
    harmful["cifar-10-batches-py/data_batch_3"] = pickle.dumps({b"data": Harmful(tmp_path / "trace")}, protocol=2)
    write_archive(tmp_path / "cifar-10-python.tar.gz", harmful)
    with pytest.raises(UsageError, match=r"names posix.mkdir.* could run any program, so it is refused"):
        open_cifar("cifar10", tmp_path)
    assert not (tmp_path / "trace").exists()


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    images, labels = write_cifar10(tmp_path / "npz")
    path = tmp_path / "cifar-10-python.tar.gz"
    complete = members(images, labels)
    write_archive(path, {name: complete[name] for name in list(complete)[:-1]})
    with pytest.raises(UsageError, match="is damaged: it has no cifar-10-batches-py/test_batch"):
        open_cifar("cifar10", tmp_path)
    write_archive(path, complete | {"cifar-10-batches-py/data_batch_2": b"no pickle"})
    with pytest.raises(UsageError, match="is damaged: UnpicklingError"):
        open_cifar("cifar10", tmp_path)
    write_archive(path, complete)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(UsageError, match="is damaged"):
        open_cifar("cifar10", tmp_path)


@pytest.mark.parametrize("images", [np.zeros((3, 3, 32, 32), np.uint8), np.full((4, 3, 32, 32), 0.5)])
def test_an_npz_with_too_few_images_or_with_other_numbers_than_bytes_is_named(
    tmp_path: Path, images: np.ndarray
) -> None:
    write_cifar10(tmp_path)
    np.savez(tmp_path / "data_batch_2.npz", labels=np.arange(4), images=images)
    with pytest.raises(UsageError, match=r"data_batch_2.npz' is damaged: it must hold n labels and, in bytes"):
        open_cifar("cifar10", tmp_path).train.read(np.arange(20))


def test_an_npz_without_images_or_labels_is_named(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    np.savez(tmp_path / "data_batch_2.npz", labels=np.arange(4))
    with pytest.raises(UsageError, match=r"data_batch_2.npz' is damaged: it must hold n labels and, in bytes, either"):
        open_cifar("cifar10", tmp_path).train.read(np.arange(20))
    np.savez(tmp_path / "data_batch_2.npz", images=np.zeros((4, 3, 32, 32), np.uint8))
    with pytest.raises(UsageError, match="has no array labels"):
        open_cifar("cifar10", tmp_path)
