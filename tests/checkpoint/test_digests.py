from __future__ import annotations

import hashlib
import zlib

import pytest

from hpcopt.checkpoint.digests import ArrayDigest, array_digest

BLOCKS = [b"123", b"", memoryview(b"456789")]


def test_the_digest_of_an_array_is_the_crc_32_of_its_bytes_however_they_are_cut() -> None:
    assert array_digest(BLOCKS) == array_digest([b"123456789"]) == "crc32:cbf43926"
    assert array_digest([]) == f"crc32:{zlib.crc32(b''):08x}"


def test_a_digest_is_repeated_by_the_algorithm_it_names() -> None:
    for found in ("crc32:cbf43926", f"sha256:{hashlib.sha256(b'123456789').hexdigest()}"):
        digest = ArrayDigest.like(found)
        for block in BLOCKS:
            digest.update(block)
        assert str(digest) == found


def test_an_unknown_algorithm_is_an_error() -> None:
    with pytest.raises(KeyError, match="md4"):
        ArrayDigest.like("md4:00")
