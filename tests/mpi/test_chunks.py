"""Large tensors in chunks on several ranks, of which one has its tensor in host memory."""

from __future__ import annotations

import pytest
import torch

from hpcopt.comm import chunks
from hpcopt.comm.communicator import Communicator
from tests.support.buffers import elsewhere

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


@pytest.mark.parametrize("size", [1, 6, 23])
def test_ranks_with_and_without_a_device_exchange_blocks_and_reduce_in_flight(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Blocks of 0, size, 2 size ... elements."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 16)
    comm.pipelined = True
    counts = [rank * size for rank in range(comm.size)]
    total = sum(counts)
    numbers = [float(comm.rank + i) for i in range(total)]
    tensor = torch.tensor(numbers) if comm.rank == 0 else elsewhere(numbers)
    ranks, first = comm.size * (comm.size - 1) / 2, sum(counts[: comm.rank])
    own = comm.reduce_scatter(tensor, counts)
    assert own.tolist() == [comm.size * i + ranks for i in range(first, first + counts[comm.rank])]
    assert tensor.tolist() == numbers
    assert comm.allgatherv(own, counts).tolist() == [comm.size * i + ranks for i in range(total)]
    gathered = comm.iallgatherv(own, torch.empty_like(tensor), counts)
    assert gathered.wait().tolist() == [comm.size * i + ranks for i in range(total)]
    other = elsewhere([float(comm.rank)] * (2 * size)) if comm.rank == 0 else torch.full((2 * size,), float(comm.rank))
    requests = [comm.iallreduce(tensor), comm.iallreduce(other, "max")]
    requests.append(comm.ibcast(elsewhere([float(comm.rank)] * size), root=comm.size - 1))
    # Whoever asks first, messages are those of the same chunks.
    found = [request.wait().tolist() for request in (requests if comm.rank else reversed(requests))]
    sums, most, sent = found if comm.rank else reversed(found)
    assert sums == [comm.size * i + ranks for i in range(total)]
    assert most == [comm.size - 1.0] * (2 * size)
    assert sent == [comm.size - 1.0] * size
