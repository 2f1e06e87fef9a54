"""Buffers of whole numbers, others on every rank: every type holds them exactly, so no order of a sum can matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hpcopt.comm.communicator import Communicator

KINDS: dict[str, Callable[[np.ndarray], Any]] = {"torch": torch.from_numpy, "numpy": lambda array: array}

types = pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64"])
kinds = pytest.mark.parametrize("kind", KINDS)


def numbers(rank: int, count: int, dtype: str) -> np.ndarray:
    """What rank ``rank`` holds: different on every rank and in every place."""
    return ((np.arange(count) * 7 + rank * 13) % 101 - 50).astype(dtype)


def everyone(comm: Communicator, count: int, dtype: str) -> np.ndarray:
    """What all ranks hold, one row each."""
    return np.stack([numbers(rank, count, dtype) for rank in range(comm.size)])


def make(kind: str, array: np.ndarray) -> Any:
    """A copy as the kind of buffer."""
    return KINDS[kind](array.copy())


def assert_same(found: Any, expected: np.ndarray) -> None:
    """The same type, shape and bits."""
    found = np.asarray(found)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()


class TensorElsewhere(torch.Tensor):
    """A tensor that says it is on a device that MPI cannot read."""

    is_cpu = False  # type: ignore[assignment]


def elsewhere(values: list[float]) -> torch.Tensor:
    """Numbers in float32 that are, by their own word, on a device."""
    return torch.tensor(values).as_subclass(TensorElsewhere)


def uneven(comm: Communicator) -> list[int]:
    """Counts with an empty part in the middle of different ones."""
    return [0 if rank == 1 else 3 * rank + 2 for rank in range(comm.size)]
