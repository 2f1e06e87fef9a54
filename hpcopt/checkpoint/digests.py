"""Digests of arrays: which array of a checkpoint is damaged, and whether what is read is still what was checked.

Against damage of any kind there is the SHA-256 of every file. A second SHA-256 of the same bytes would cost as much
again; a CRC-32 costs a quarter of it and misses one damage in four thousand million.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable
from typing import Any, Protocol

Bytes = Any
"""bytes, or a memoryview of bytes that lie without gaps."""


class ArrayDigest:
    """Digest of bytes that come one block after the other; as a string it is what ``Part.digest`` says."""

    def __init__(self, algorithm: str = "crc32") -> None:
        """Of no bytes yet. Raises KeyError for an algorithm that is not known."""
        self.algorithm = algorithm
        self._hash = _ALGORITHMS[algorithm]()

    @staticmethod
    def like(digest: str) -> ArrayDigest:
        """A new one, by the algorithm of a finished one. Raises as the constructor."""
        return ArrayDigest(digest.partition(":")[0])

    def update(self, data: Bytes) -> None:
        """Take in more bytes. Other threads run meanwhile."""
        self._hash.update(data)

    def __str__(self) -> str:
        """Name of the algorithm, a colon, and the digest of all bytes so far in hexadecimal digits."""
        return f"{self.algorithm}:{self._hash.hexdigest()}"


def array_digest(blocks: Iterable[Bytes]) -> str:
    """Digest of blocks of bytes together."""
    digest = ArrayDigest()
    for block in blocks:
        digest.update(block)
    return str(digest)


class _Hash(Protocol):
    def update(self, data: Bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: Bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


_ALGORITHMS: dict[str, Callable[[], _Hash]] = {"crc32": _Crc32, "sha256": hashlib.sha256}
