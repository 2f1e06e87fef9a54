"""Large tensors in chunks on several ranks, of which one has its tensor in host memory."""

from __future__ import annotations

import pytest
import torch

from hpcopt.comm import chunks
from hpcopt.comm.communicator import Communicator
from tests.comm.test_staging import elsewhere

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("size", [4, 5, 23])
def test_ranks_with_and_without_a_device_reduce_and_broadcast_together(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 16)
    comm.pipelined = True
    numbers = [float(comm.rank + i) for i in range(size)]
    tensor = torch.tensor(numbers) if comm.rank == 0 else elsewhere(numbers)
    comm.allreduce(tensor)
    ranks = comm.size * (comm.size - 1) / 2
    assert tensor.tolist() == [comm.size * i + ranks for i in range(size)]
    tensor += comm.rank
    last = comm.size - 1
    assert comm.bcast(tensor, root=last).tolist() == [comm.size * i + ranks + last for i in range(size)]
    assert comm.allreduce(tensor, "max").tolist() == tensor.tolist()
