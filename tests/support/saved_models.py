"""Checkpoints of a small network as a training run would save them, written in no time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpcopt.checkpoint.names import BEST, LOOP, MODEL, SOLVER, tensor_path
from hpcopt.checkpoint.retention import Retention
from hpcopt.checkpoint.store import CheckpointStore
from tests.support.simulated import on_ranks


def network(seed: int = 0, width: int = 3) -> nn.Sequential:
    """A network with a convolution, running statistics, a buffer that is a whole number, and ten and more layers."""
    torch.manual_seed(seed)
    identities = [nn.Identity() for _ in range(8)]
    model = nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), *identities, nn.Flatten(), nn.Linear(4 * width, 2)
    )
    model(torch.randn(5, 1, 4, 4))
    return model.eval()


def contents(model: nn.Module, best: nn.Module | None = None, **scalars: Any) -> dict[str, Any]:
    """What a run saves: the model, the best one if it is another, and scalars of the method."""
    found: dict[str, Any] = {tensor_path(MODEL, name): tensor for name, tensor in model.state_dict().items()}
    if best is not None:
        found |= {tensor_path(BEST, name): tensor for name, tensor in best.named_parameters()}
        found |= {tensor_path(BEST, name): tensor for name, tensor in best.named_buffers()}
    found |= {f"{SOLVER}/{name}": value for name, value in scalars.items()}
    return found | {f"{LOOP}/iterations": 40}


def save(
    directory: Path, saved: Mapping[int, Mapping[str, Any]], ranks: int = 2, best: Sequence[int] = (), keep: int = 100
) -> list[Path]:
    """Save contents by step on ``ranks`` ranks; returns the folders."""

    def work(comm: Any) -> list[Path]:
        store = CheckpointStore(comm, directory, Retention(last=keep))
        return [store.save(step, content, best=step in best).path for step, content in saved.items()]

    return on_ranks(ranks, work)[0]


def damage(file: Path, place: float = 0.5) -> None:
    """Change one byte of a file."""
    raw = bytearray(file.read_bytes())
    raw[int(place * len(raw))] ^= 1
    file.write_bytes(raw)


def equal(arrays: Mapping[str, Any], model: nn.Module) -> bool:
    """Whether arrays or tensors are the model's ``state_dict()`` to the last bit."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    found = {name: array.numpy() if isinstance(array, torch.Tensor) else array for name, array in arrays.items()}
    return found.keys() == state.keys() and all(
        found[name].dtype == state[name].dtype
        and found[name].shape == state[name].shape
        and found[name].tobytes() == state[name].tobytes()
        for name in state
    )
