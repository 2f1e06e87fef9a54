"""HDF5: only the rows asked for are read from the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hpcopt.data import hdf5
from hpcopt.data.hdf5 import open_hdf5
from hpcopt.errors import UsageError

X, Y = np.arange(200.0).reshape(50, 4), np.arange(50)


def write(folder: Path, **arrays: np.ndarray) -> Path:
    path = folder / "set.h5"
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, chunks=True, fletcher32=True)
    return path


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that h5py was asked for, slab by slab."""
    taken: list[int] = []
    plain = h5py.Dataset.__getitem__

    def counting(self: Any, *arguments: Any, **keys: Any) -> Any:
        out = plain(self, *arguments, **keys)
        taken.append(len(out))
        return out

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counting)
    return taken


def test_a_shard_is_read_as_one_slab(tmp_path: Path, rows_read: list[int]) -> None:
    reader, test = open_hdf5(write(tmp_path, inputs=X, targets=Y), None, None)
    assert (reader.rows, reader.shape, test) == (50, (4,), None)
    rows_read.clear()
    inputs, targets = reader.read(np.arange(20, 33))
    assert rows_read == [13, 13]
    np.testing.assert_array_equal(inputs, X[20:33])
    np.testing.assert_array_equal(targets, Y[20:33])


def test_scattered_rows_are_picked_out_of_small_slabs(
    tmp_path: Path, rows_read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slabs of 5 rows here; those without a wanted row are passed over."""
    monkeypatch.setattr(hdf5, "SLAB_BYTES", 5 * 4 * 8)
    reader, _ = open_hdf5(write(tmp_path, inputs=X, targets=Y), None, None)
    rows_read.clear()
    rows = np.array([10, 11, 14, 31])
    inputs, targets = reader.read(rows)
    np.testing.assert_array_equal(inputs, X[rows])
    np.testing.assert_array_equal(targets, rows)
    assert max(rows_read) <= 5
    assert sum(rows_read) == 2 * (5 + 2)


def test_no_rows_have_the_right_shape(tmp_path: Path) -> None:
    reader, _ = open_hdf5(write(tmp_path, inputs=X, targets=Y), None, None)
    inputs, targets = reader.read(np.array([], int))
    assert (inputs.shape, targets.shape) == ((0, 4), (0,))


def test_arrays_are_found_in_groups_and_targets_in_columns(tmp_path: Path) -> None:
    path = write(tmp_path, **{"train/x": X, "train/y": Y[:, None], "test/x": X[:3], "test/y": Y[:3, None]})
    train, test = open_hdf5(path, None, None)
    assert test is not None
    assert train.read(np.array([7]))[1].tolist() == [7]
    assert test.rows == 3
    table, _ = open_hdf5(write(tmp_path, table=X), None, [0, 3])
    assert [part.tolist() for part in table.read(np.array([1]))] == [[[5, 6]], [[4, 7]]]


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, inputs=X, targets=Y)
    content = bytearray(path.read_bytes())
    place = content.index(X[20].tobytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UsageError, match="is damaged"):
        open_hdf5(path, None, None)[0].read(np.arange(50))


def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        open_hdf5(tmp_path / "none.h5", None, None)
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(UsageError, match="is damaged"):
        open_hdf5(tmp_path / "text.h5", None, None)
    with pytest.raises(UsageError, match="only real numbers"):
        open_hdf5(write(tmp_path, inputs=np.array([b"a", b"b"]), targets=np.arange(2)), None, None)
    with pytest.raises(UsageError, match=r"inputs' have shape \(50, 4\) and the targets 'targets' shape \(49,\)"):
        open_hdf5(write(tmp_path, inputs=X, targets=Y[1:]), None, None)
