"""Arrays of torch and NumPy in pieces of bounded size, and what may be stored under which name.

Nothing here loads torch: without it there is no tensor to store.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hpcopt.errors import UsageError
from hpcopt.layout.partitioned import Partitioned

PIECE_BYTES = 8 << 20
"""Bytes handed on in one piece; a piece of device memory or of a strided array is copied, all else is not."""

KINDS = "biuf"
"""Kinds of NumPy types that can be stored: bool, signed and unsigned integers, floating point."""

Region = tuple[slice, ...]


class Description(NamedTuple):
    """An array (``scalar`` False) or a Python number, truth value or string, without its values."""

    scalar: bool
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the array's elements."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def is_tensor(value: Any) -> bool:
    """Whether it is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def describe(name: str, value: Any) -> Description:
    """What ``value`` is. Raises UsageError when it cannot be stored."""
    if isinstance(value, Partitioned):
        return _describe_block(name, value)
    if isinstance(value, (bool, int, float, str)) and not isinstance(value, np.generic):
        return Description(True, _scalar_type(name, value), ())
    if is_tensor(value):
        dtype, shape = _tensor_type(name, value), tuple(value.shape)
    elif isinstance(value, (np.ndarray, np.generic)):
        dtype, shape = value.dtype, value.shape
    else:
        raise UsageError(
            f"The checkpoint cannot hold {name!r} of type {type(value).__name__}: give a torch tensor, a NumPy array, "
            "or a bool, int, float or str."
        )
    if dtype.kind not in KINDS:
        raise _unknown_type(name, str(dtype))
    return Description(False, dtype.str, shape)


def _describe_block(name: str, block: Partitioned) -> Description:
    found, shape, start = describe(name, block.data), tuple(block.shape), tuple(block.start)
    inside = len(shape) == len(start) == len(found.shape) and all(
        0 <= first <= first + count <= size for first, count, size in zip(start, found.shape, shape, strict=True)
    )
    if found.scalar or not inside:
        raise UsageError(
            f"The checkpoint cannot hold {name!r}: a block of shape {found.shape} at {start} does not lie within an "
            f"array of shape {shape}."
        )
    return Description(False, found.dtype, shape)


def check_names(names: Sequence[str], reserved: str = "") -> None:
    """Names must be HDF5 paths such as ``model/fc1/weight``, of which none is the folder of another.

    Raises:
        UsageError: a name breaks a rule, or begins with the ``reserved`` folder.
    """
    known = set(names)
    for name in names:
        parts = name.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\0" in name or (reserved and parts[0] == reserved):
            raise UsageError(
                f"A checkpoint cannot hold anything under the name {name!r}. A name is made of words with / between "
                f"them, as 'solver/radius'{f', and its first word is not {reserved!r}' if reserved else ''}."
            )
        folders = {"/".join(parts[:depth]) for depth in range(1, len(parts))}
        if clash := folders & known:
            raise UsageError(
                f"A checkpoint cannot hold {name!r} beside {clash.pop()!r}: a name is no folder of others."
            )


def scalar_bytes(value: bool | int | float | str) -> bytes:
    """The bytes a scalar's digest is made of."""
    if isinstance(value, str):
        return value.encode()
    return np.asarray(value, dtype=_scalar_type("", value)).tobytes()


def regions(shape: Sequence[int], itemsize: int, limit: int = PIECE_BYTES) -> Iterator[Region]:
    """Cut a row-major array into runs of at most ``limit`` bytes, in the order of its memory.

    >>> [tuple((s.start, s.stop) for s in region) for region in regions((2, 3), 8, 16)]
    [((0, 1), (0, 2)), ((0, 1), (2, 3)), ((1, 2), (0, 2)), ((1, 2), (2, 3))]
    """
    nbytes = math.prod(shape) * itemsize
    if nbytes == 0:
        return
    whole = tuple(slice(0, size) for size in shape)
    if nbytes <= limit or not shape:
        yield whole
        return
    row = nbytes // shape[0]
    if row <= limit:
        step = limit // row
        for begin in range(0, shape[0], step):
            yield (slice(begin, min(begin + step, shape[0])), *whole[1:])
        return
    for begin in range(shape[0]):
        for rest in regions(shape[1:], itemsize, limit):
            yield (slice(begin, begin + 1), *rest)


def pieces(array: Any, limit: int = PIECE_BYTES) -> Iterator[memoryview]:
    """The bytes of a tensor or array in row-major order; host memory that lies so is not copied."""
    itemsize = array.element_size() if is_tensor(array) else array.dtype.itemsize
    for region in regions(tuple(array.shape), itemsize, limit):
        part = array[region] if region else array
        host = part.detach().cpu().numpy() if is_tensor(part) else np.asarray(part)
        yield np.ascontiguousarray(host).reshape(-1).view(np.uint8).data


def part_of(array: Any, start: Sequence[int], count: Sequence[int]) -> Any:
    """The block of an array that begins at ``start`` and has ``count`` elements a dimension, as a view."""
    region = tuple(slice(first, first + size) for first, size in zip(start, count, strict=True))
    return array[region] if region else array


def put(target: Any, start: Sequence[int], block: np.ndarray[Any, Any], first: Sequence[int]) -> None:
    """Copy of ``block``, at ``first`` of an array, what it has in common with ``target``, at ``start`` of it."""
    ends = [(max(a, b), min(a + n, b + m)) for a, n, b, m in zip(start, target.shape, first, block.shape, strict=True)]
    if any(low >= high for low, high in ends):
        return
    block = block[tuple(slice(low - b, high - b) for (low, high), b in zip(ends, first, strict=True)) or ...]
    region = tuple(slice(low - a, high - a) for (low, high), a in zip(ends, start, strict=True))
    if is_tensor(target):
        torch = sys.modules["torch"]
        with torch.no_grad():
            target[region or ...].copy_(torch.from_numpy(block))
    else:
        target[region or ...] = block


def check_target(name: str, target: Any, dtype: str, shape: Sequence[int]) -> None:
    """Raise UsageError when an array to read into, or a block of it, has another type or shape than what was stored."""
    found = describe(name, target)
    if found.scalar or (found.dtype, found.shape) != (dtype, tuple(shape)):
        raise UsageError(
            f"{name!r} was saved as {np.dtype(dtype).name} of shape {tuple(shape)} and cannot be read into "
            f"{np.dtype(found.dtype).name if not found.scalar else found.dtype} of shape {found.shape}. The "
            "checkpoint belongs to another model or method: go on with the options it was made with, or start anew."
        )


def texts(about: Mapping[str, Mapping[str, str]], name: str) -> tuple[str, str]:
    """Unit and meaning of a name, "1" and "" where nothing is said."""
    entry = about.get(name, {})
    return str(entry.get("unit", "1")), str(entry.get("meaning", ""))


def _scalar_type(name: str, value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return "|b1"
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise UsageError(f"The checkpoint cannot hold {name!r} = {value}: whole numbers have 64 bits.")
        return "<i8"
    if isinstance(value, float):
        return "<f8"
    if "\0" in value or not _is_unicode(value):
        raise UsageError(f"The checkpoint cannot hold {name!r}: a string must be Unicode text without null characters.")
    return "str"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tensor_type(name: str, tensor: Any) -> np.dtype[Any]:
    word = str(tensor.dtype).removeprefix("torch.")
    if str(tensor.layout) != "torch.strided":
        raise _unknown_type(name, f"{word} in the layout {tensor.layout}")
    try:
        return np.dtype(word)
    except TypeError:
        raise _unknown_type(name, word) from None


def _unknown_type(name: str, word: str) -> UsageError:
    return UsageError(
        f"The checkpoint cannot hold {name!r} of type {word}: it stores dense arrays of bool, integers, float16, "
        "float32 and float64. Convert it to one of them."
    )
