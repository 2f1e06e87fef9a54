"""Random numbers by counters: what is drawn depends on (seed, stream, epoch, index) and on nothing else.

There is no generator with a state, so any rank can draw the number of any sample at any time: the order of the data
does not depend on the number of ranks, and a resumed run needs to know its counters only.

The mixing function is the finaliser of SplitMix64: G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom
number generators", OOPSLA 2014, doi 10.1145/2660193.2660195 (constants: D. Stafford's variant 13).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def _mix(value: int) -> int:
    """The SplitMix64 finaliser, a bijection of the 64-bit integers."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)


@lru_cache(maxsize=256)
def _stream_number(stream: str) -> int:
    """A 64-bit number for the name of a stream, the same on every machine and in every Python process."""
    return int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "little")


def key64(seed: int, stream: str, *counters: int) -> int:
    """A 64-bit key for a seed, the name of a stream and any number of counters.

    Args:
        seed: the run's seed; any integer, taken modulo 2**64.
        stream: what the numbers are for ("init", "batches", "dropout", ...); streams are independent of each other.
        counters: integers such as epoch, step or layer. Their order matters, and so does their number.

    Returns:
        An integer in 0 .. 2**64 - 1.
    """
    key = _mix(_mix(seed + _GOLDEN) ^ _stream_number(stream))
    for counter in counters:
        key = _mix((key + _GOLDEN) ^ _mix(counter + _GOLDEN))
    return key


def uniform_keys(seed: int, stream: str, epoch: int, indices: np.ndarray) -> np.ndarray:
    """One uniform 64-bit key for each index: element i of the SplitMix64 sequence that starts at the stream's key.

    Args:
        seed: the run's seed.
        stream: the name of the stream.
        epoch: a counter shared by all the indices.
        indices: non-negative integers of any shape, for example the positions of samples in the whole set.

    Returns:
        uint64 array of the shape of ``indices``. Different indices have different keys within one (seed, stream,
        epoch), so that sorting by key has no ties.
    """
    # Unsigned arithmetic wraps around, which is what the generator wants; arrays (not scalars) do so without a warning.
    keys = np.atleast_1d(np.asarray(indices)).astype(np.uint64)
    keys += np.uint64(1)
    keys *= np.uint64(_GOLDEN)
    keys += np.uint64(key64(seed, stream, epoch))
    keys ^= keys >> np.uint64(30)
    keys *= np.uint64(_FIRST)
    keys ^= keys >> np.uint64(27)
    keys *= np.uint64(_SECOND)
    keys ^= keys >> np.uint64(31)
    return keys.reshape(np.shape(indices))


def uniforms(seed: int, stream: str, epoch: int, indices: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1), float64, one for each index: the upper 53 bits of ``uniform_keys``."""
    return np.asarray((uniform_keys(seed, stream, epoch, indices) >> np.uint64(11)) * 2.0**-53)


def permutation(seed: int, stream: str, epoch: int, count: int) -> np.ndarray:
    """The numbers 0 .. count-1 in an order drawn by keys, int64."""
    return np.argsort(uniform_keys(seed, stream, epoch, np.arange(count)), kind="stable")
