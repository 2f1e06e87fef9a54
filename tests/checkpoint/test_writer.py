from __future__ import annotations

import errno
import hashlib
import os
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcopt.checkpoint import writer
from hpcopt.checkpoint.arrays import PIECE_BYTES
from hpcopt.checkpoint.image import Scalar, Slab
from hpcopt.checkpoint.writer import HashedFile, Point, write_rank_file


def slab(path: str, array: np.ndarray) -> Slab:
    return Slab(path, array, array.dtype.str, array.shape, (0,) * array.ndim, array.shape, "1", "")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def crc32(data: bytes) -> str:
    return f"crc32:{zlib.crc32(data):08x}"


def test_digests_are_those_of_the_file_and_of_every_array(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(300_000.0),
        "b/c": np.ones((3, 5), np.float32).T,
        "none": np.zeros((0, 2)),
        "one": np.array(3),
    }
    slabs = [slab(path, array) for path, array in arrays.items()]
    written = write_rank_file(tmp_path, 12, slabs, [Scalar("s", 2.5, "1", "")], {})
    content = (tmp_path / "rank0012.h5").read_bytes()
    assert (written.file.name, written.file.bytes) == ("rank0012.h5", len(content))
    assert written.file.sha256 == sha256(content)
    assert written.digests == {
        **{path: crc32(array.tobytes()) for path, array in arrays.items()},
        "s": crc32(np.float64(2.5).tobytes()),
    }


def test_the_points_are_passed_in_order(tmp_path: Path) -> None:
    passed: list[tuple[Point, int]] = []
    path = tmp_path / "rank0000.h5"

    def note(point: Point) -> None:
        passed.append((point, path.stat().st_size))

    write_rank_file(tmp_path, 0, [slab("a", np.zeros(10**6)), slab("b", np.ones(10**6))], [], {}, note)
    assert [point for point, _ in passed] == [Point.OPENED, Point.HALFWAY, Point.CLOSED]
    sizes = [size for _, size in passed]
    assert sizes[0] == 0
    assert 8e6 < sizes[1] < 9e6
    assert 16e6 < sizes[2]


def test_all_is_synced_before_the_file_counts_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(writer.os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    written = write_rank_file(tmp_path, 0, [slab("a", np.zeros(1000))], [], {})
    assert synced == [written.file.bytes]


def test_an_error_of_an_early_sync_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(writer, "_sync_data", fail)
    monkeypatch.setattr(writer, "SYNC_BYTES", 1000)
    with pytest.raises(OSError, match="Input/output"):
        write_rank_file(tmp_path, 0, [slab("a", np.zeros(1000))], [], {})


def test_writes_that_come_back_short_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.write
    monkeypatch.setattr(writer.os, "write", lambda descriptor, data: whole(descriptor, data[:1001]))
    written = write_rank_file(tmp_path, 0, [slab("a", np.arange(10_000))], [], {})
    assert sha256((tmp_path / "rank0000.h5").read_bytes()) == written.file.sha256


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "rank0000.h5").write_text("mine")
    with pytest.raises(FileExistsError):
        write_rank_file(tmp_path, 0, [], [], {})
    assert (tmp_path / "rank0000.h5").read_text() == "mine"


def test_a_failed_write_leaves_no_thread_and_no_open_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.write

    def full(descriptor: int, data: memoryview) -> int:
        if len(data) < 80_000:
            return whole(descriptor, data)
        assert any("hpcopt-checkpoint" in thread.name for thread in threading.enumerate()), "hashing is under way"
        raise OSError(errno.ENOSPC, "No space left on device")

    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(writer.os, "write", full)
        with pytest.raises(OSError, match="No space left") as kept:
            write_rank_file(tmp_path, 0, [slab("a", np.zeros(10_000))], [], {})
    assert threading.active_count() == threads, f"after {kept.value}"
    assert len(os.listdir("/proc/self/fd")) == files


def test_arrays_with_strides_are_copied_one_piece_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = 0
    whole = HashedFile._write

    def note(self: HashedFile, block: memoryview) -> None:
        nonlocal longest
        longest = max(longest, block.nbytes)
        whole(self, block)

    monkeypatch.setattr(HashedFile, "_write", note)
    turned = torch.arange(4_000_000.0).reshape(2000, 2000).T
    written = write_rank_file(tmp_path, 0, [slab("a", turned.numpy())], [], {})
    assert written.digests["a"] == crc32(turned.contiguous().numpy().tobytes())
    assert PIECE_BYTES / 2 < longest <= PIECE_BYTES
