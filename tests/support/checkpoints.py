"""Checkpoints for tests, written by ranks that are threads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcopt.checkpoint import manifest
from hpcopt.checkpoint.folder import published
from hpcopt.checkpoint.retention import Retention
from hpcopt.checkpoint.store import CheckpointStore, Saved
from hpcopt.checkpoint.verify import damaged, verify
from tests.support.simulated import on_ranks


def replicated(seed: int = 0) -> dict[str, Any]:
    """One of everything that is the same on all ranks; the large ones are cut."""
    random = np.random.default_rng(seed)
    large = random.standard_normal((531, 257))
    return {
        "model/fc1/weight": torch.from_numpy(large),
        "model/fc1/transposed": torch.from_numpy(large).T,
        "model/fc1/bias": torch.from_numpy(random.standard_normal(7)).float(),
        "model/many_short_dimensions": random.integers(0, 255, (3,) * 13, dtype=np.uint8),
        "model/mask": torch.tensor([True, False, True]),
        "model/large_mask": random.integers(0, 2, (3, 700_001)).astype(bool),
        "model/counts": np.arange(5, dtype=np.int64) - 2,
        "model/half": np.arange(3, dtype=np.float16),
        "model/nothing": torch.zeros(0, 3),
        "model/batches_seen": torch.tensor(12),
        "model/strided": np.arange(600_000, dtype=np.float32)[::2],
        "solver/radius": 0.1 * (seed + 1),
        "solver/bound": float("inf"),
        "loop/iteration": 2**53 + 1 + seed,
        "loop/accepted": True,
        "loop/phase": "Maß der Steigung",
        "loop/empty": "",
    }


def own(rank: int) -> dict[str, Any]:
    """What differs from rank to rank, also in shape and in name."""
    found: dict[str, Any] = {
        "random/state": torch.arange(5 + rank, dtype=torch.uint8),
        "gradient": np.full((rank, 3), float(rank)),
        "seconds": 0.5 * rank,
    }
    return found | ({"extra/only_here": "yes"} if rank == 1 else {})


ABOUT = {"solver/radius": {"unit": "1", "meaning": "trust-region radius"}, "seconds": {"unit": "s", "meaning": "busy"}}


def write(
    directory: Path, steps: Sequence[int] = (1,), ranks: int = 2, seed: int = 0, retention: Retention | None = None
) -> list[Saved]:
    """Save checkpoints of the contents above, with ``seed + step``; returns what rank 0 got."""
    keep = retention or Retention(last=100)

    def save(comm: Any) -> list[Saved]:
        store = CheckpointStore(comm, directory, keep)
        return [store.save(step, replicated(seed + step), own(comm.rank), ABOUT) for step in steps]

    return on_ranks(ranks, save)[0]


SMALL = {"w": np.arange(200_000, dtype=np.float64), "b": np.arange(9, dtype=np.float32), "radius": 0.5}
"""Enough to have a file with arrays on each of two ranks."""


def write_small(directory: Path, steps: Sequence[int] = (1,), ranks: int = 2, shift: float = 0.0) -> list[Path]:
    """Save small checkpoints quickly; returns their folders."""

    def save(comm: Any) -> list[Path]:
        store = CheckpointStore(comm, directory, Retention(last=100))
        content = SMALL | {"w": SMALL["w"] + shift}
        return [store.save(step, content, {"state": np.arange(comm.rank + 1)}).path for step in steps]

    return on_ranks(ranks, save)[0]


def make_later_schema(path: Path) -> None:
    """Make the manifest of a checkpoint one of the next version of the format, sound in itself."""
    file = path / manifest.FILE_NAME
    content = json.loads(file.read_text()) | {"schema": manifest.SCHEMA + 1}
    del content["digest"]
    file.write_text(manifest._text(content))


def list_valid(directory: Path) -> list[Path]:
    """The checkpoints in ``directory`` that are whole, oldest first."""
    return [path for path in published(directory) if not damaged(verify(path))]


def same(left: Any, right: Any) -> bool:
    """Whether two values are the same to the last bit, in type and in shape."""
    if isinstance(right, (bool, int, float, str)) and not isinstance(right, np.generic):
        return type(left) is type(right) and (left == right)
    left, right = np.asarray(left), np.asarray(right)
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
