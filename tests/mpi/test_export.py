"""What several ranks saved is exported by one process as the model they trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hpcopt.analysis.checkpoint import open_checkpoint
from hpcopt.analysis.export import export
from hpcopt.checkpoint.names import MODEL, tensor_path
from hpcopt.checkpoint.store import CheckpointStore
from hpcopt.comm.communicator import Communicator

pytestmark = pytest.mark.mpi


def network() -> nn.Sequential:
    """Its first layer has more than 1 MiB, so that every rank has a part of it."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(601, 997), nn.BatchNorm1d(997), nn.Linear(997, 3))


def test_the_model_of_all_ranks_is_exported_whole(comm: Communicator, shared_path: Path) -> None:
    model = network()
    content = {tensor_path(MODEL, name): tensor for name, tensor in model.state_dict().items()}
    saved = CheckpointStore(comm, shared_path / "checkpoints").save(7, content, {"rank": comm.rank})
    with comm.together("reading on rank 0"):
        if comm.rank == 0:
            with open_checkpoint(shared_path) as checkpoint:
                assert checkpoint.path == saved.path
                assert len(checkpoint.stored.describe("model/0/weight").parts) == comm.size
                export(checkpoint, shared_path / "model.pt")
                export(checkpoint, shared_path / "model.npz")
            for tensor in model.parameters():
                tensor.data.zero_()
            model.load_state_dict(torch.load(shared_path / "model.pt", weights_only=True), strict=True)
            with np.load(shared_path / "model.npz") as arrays:
                for name, tensor in network().state_dict().items():
                    assert torch.equal(model.state_dict()[name], tensor)
                    assert arrays[name].tobytes() == tensor.numpy().tobytes()
