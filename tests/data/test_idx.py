"""MNIST's four files: packed or not, damaged or not."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from hpcopt.data.idx import open_mnist, read_idx
from hpcopt.errors import UsageError
from tests.support.datafiles import write_idx, write_mnist


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("folder", ["", "mnist", "MNIST/raw"])
def test_the_four_files_are_found_and_read(tmp_path: Path, packed: bool, folder: str) -> None:
    content = write_mnist(tmp_path / folder, packed=packed)
    source = open_mnist(tmp_path)
    inputs, targets = source.train.read(np.array([3, 19]))
    np.testing.assert_array_equal(inputs[:, 0], content["train-images-idx3-ubyte"][[3, 19]])
    assert targets.tolist() == [3, 9]
    assert source.test is not None
    assert (source.train.rows, source.test.rows, source.train.shape) == (20, 10, (1, 4, 5))


@pytest.mark.parametrize("code", [0x09, 0x0B, 0x0C, 0x0D, 0x0E])
def test_all_types_of_the_format_are_read(tmp_path: Path, code: int) -> None:
    kind = {0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}[code]
    numbers = np.array([[1, -2, 3]], kind)
    (tmp_path / "a").write_bytes(struct.pack(">HBBII", 0, code, 2, 1, 3) + numbers.tobytes())
    assert read_idx(tmp_path / "a").tolist() == [[1, -2, 3]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin like an idx file"),
        (b"\x1f\x8b\x08\x00", "does not begin like an idx file"),
        (b"\0\0\x08\x03\0\0", "does not begin like an idx file"),
        (struct.pack(">HBBI", 0, 8, 1, 5) + b"1234", "promises 5 bytes of data, but 4 follow"),
        (struct.pack(">HBBI", 0, 8, 1, 5) + b"123456", "promises 5 bytes of data, but 6 follow"),
    ],
)
def test_what_is_no_whole_idx_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_idx(tmp_path / "a")


def test_a_damaged_gz_is_found_also_behind_the_shard(tmp_path: Path) -> None:
    """The last bytes hold the checksum: a shard at the front would not need them, but the file is not whole."""
    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UsageError, match=r"train-images-idx3-ubyte.gz' is damaged: CRC check failed"):
        open_mnist(tmp_path)


def test_there_must_be_a_label_for_each_image(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(19, np.uint8))
    with pytest.raises(UsageError, match=r"\(20, 4, 5\).*\(19,\); there must be one label for each image"):
        open_mnist(tmp_path)


def test_a_missing_file_is_named_with_the_place(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UsageError, match=rf"'mnist' are not in '{tmp_path}'.*Needed: train-images-idx3-ubyte.gz,"):
        open_mnist(tmp_path)
