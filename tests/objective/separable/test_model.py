"""What the ranks make together of their features. With MPI it is in tests/mpi/test_slimtrain.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from hpcopt.objective.separable.model import SeparableModel


def test_rows_are_gathered_however_many_there_are() -> None:
    """Tensors without memory, of more numbers than float32 can count."""
    rows, given = 2**24 + 1, []

    def allgatherv(buffer: torch.Tensor, counts: list[int], label: str) -> torch.Tensor:
        given.append((len(buffer), counts))
        return torch.empty(sum(counts), device="meta")

    def reduce_scalars(values: list[float], label: str) -> list[float]:
        assert values[:2] == [0.0, 0.0], "of the other rank"
        return [7.0, 2.0, *values[2:]]

    model: Any = object.__new__(SeparableModel)
    model._comm = SimpleNamespace(rank=1, size=2, allgatherv=allgatherv, reduce_scalars=reduce_scalars)
    model.alone = False
    found = model.gather([torch.empty(rows, 1, device="meta"), torch.empty(3, 2, device="meta")])
    assert given == [(rows + 6, [9, rows + 6])]
    assert [part.shape for part in found] == [(rows + 7, 1), (4, 2)]
