"""A measurement of a machine that nobody has, with rates that one can compute with by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ONE_A_NANOSECOND = [[1.0, 1e-9], [1e9, 1.0]]
"""Operations, or bytes."""

TWICE = [[1.0, 2e-9], [1e9, 2.0]]

MICROSECOND = 1e-6


def rates(
    on_host: int, seconds: list[list[float]], waits: Sequence[Sequence[float]] = ((1e-3, 1e-9), (1.0, 1e-6))
) -> dict[str, Any]:
    """By default ranks wait a millionth of what they compute."""
    products = {"float32": seconds, "float64": seconds}
    return {
        "on_host": on_host,
        "threads": 1,
        "products": products,
        "memory": seconds,
        "copies": seconds,
        "loss": seconds[0][1],
        "solves": {"eigen": seconds, "inverse": seconds},
        "module": 100 * MICROSECOND,
        "waits": waits if on_host > 1 else [],
    }


def calls(ranks: int, hosts: int = 1, short: float = 10 * MICROSECOND) -> dict[str, Any]:
    """8 bytes in ``short``, 8 million in 8 ms more."""
    points = [[8, short], [8_000_000, short + 8e-3]]
    return {"ranks": ranks, "hosts": hosts, "allreduce": points, "broadcast": [[8, short / 2], [8_000_000, 4e-3]]}


def measurement(**changes: Any) -> dict[str, Any]:
    """Of two ranks on a host with two cores."""
    return {
        "format": 1,
        "date": "2026-01-01T00:00:00+00:00",
        "host": "node1",
        "hosts": 1,
        "ranks": 2,
        "cores": 2,
        "device": "cpu",
        "rates": [rates(1, ONE_A_NANOSECOND), rates(2, TWICE)],
        "calls": [calls(2)],
        **changes,
    }


def written(path: Path, **changes: Any) -> Path:
    """The measurement in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(measurement(**changes)))
    return path
