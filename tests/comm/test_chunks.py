"""Large tensors in chunks: every chunk is where it must be before it is read or written. Ranks in tests/mpi."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hpcopt.comm import chunks
from hpcopt.comm.chunks import DeviceChunks, chunks_of, cut, cut_blocks, in_chunks
from hpcopt.comm.communicator import Communicator
from hpcopt.comm.staging import HostPool
from hpcopt.errors import UsageError
from tests.support.buffers import elsewhere


@pytest.fixture
def pipelined(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> Communicator:
    """Chunks of four numbers of float32."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 16)
    comm.pipelined = True
    return comm


def noted(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """A list that says from now on which of these methods of device chunks was called, and for which chunk."""
    events: list[str] = []
    for name in names:
        act = getattr(DeviceChunks, name)

        def said(self: DeviceChunks, number: int, act: Any = act, name: str = name) -> Any:
            events.append(f"{name} {number}")
            return act(self, number)

        monkeypatch.setattr(DeviceChunks, name, said)
    return events


def started(events: list[str], call: Any) -> Any:
    """``call``, which says when it starts and when it is waited for."""

    class Request:
        def __init__(self, part: Any) -> None:
            events.append("start")
            self._own = call(part)

        def Wait(self) -> None:  # noqa: N802
            events.append("wait")
            self._own.Wait()

    return Request


@pytest.mark.parametrize(("load", "store"), [(True, True), (True, False), (False, True)])
def test_the_next_chunk_is_fetched_while_one_is_sent(
    pipelined: Communicator, monkeypatch: pytest.MonkeyPatch, load: bool, store: bool
) -> None:
    events = noted(monkeypatch, "fetch", "give")
    tensor = elsewhere([float(i) for i in range(9)])
    cuts = cut(tensor)
    held = chunks_of(tensor, cuts, HostPool(), write=store)
    call = started(events, lambda number: pipelined.mpi.Ibcast(held.memory(number), 0))
    in_chunks(len(cuts), call, held if load else None, held if store else None)
    both = ["fetch 0", "start", "fetch 1", "wait", "give 0", "start", "fetch 2", "wait", "give 1"]
    both += ["start", "wait", "give 2"]
    left_out = (() if load else ("fetch",)) + (() if store else ("give",))
    assert events == [event for event in both if not event.startswith(left_out)]
    if load:
        assert tensor.tolist() == list(range(9))


@pytest.mark.parametrize("size", [0, 3, 4, 5, 8, 9])
def test_a_tensor_of_any_length_comes_back_reduced(pipelined: Communicator, size: int) -> None:
    tensor = elsewhere([float(i) for i in range(size)])
    assert pipelined.allreduce(tensor) is tensor
    assert tensor.tolist() == list(range(size))
    assert pipelined.bcast(tensor).tolist() == list(range(size))
    (row,) = [row for row in pipelined.ledger.rows() if row.label == "allreduce"]
    assert (row.calls, row.bytes) == (1, 4 * size)


def test_the_two_host_buffers_are_used_again(pipelined: Communicator) -> None:
    pool, tensor = HostPool(), elsewhere([1.0] * 9)
    addresses = set()
    for _ in range(2):
        held = DeviceChunks(tensor, cut(tensor), pool)
        addresses |= {held.memory(number)[0].address for number in range(3)}
        held.end(store=True)
    assert len(addresses) == 2
    assert pool.take("pageable", 1) is not None
    assert pool.take("pageable", 1) is None


@pytest.mark.parametrize("counts", [[9], [3, 0, 7], [0, 1], [5, 5, 5, 5, 5]])
def test_every_element_of_every_block_is_in_one_chunk(pipelined: Communicator, counts: list[int]) -> None:
    cuts = cut_blocks(counts, 4)
    assert all(len(parts) == len(counts) for parts in cuts)
    assert all(sum(part.stop - part.start for part in parts) <= max(4, len(counts)) for parts in cuts)
    ends = [sum(counts[: rank + 1]) for rank in range(len(counts))]
    for rank, (count, end) in enumerate(zip(counts, ends, strict=True)):
        own = [index for parts in cuts for index in range(parts[rank].start, parts[rank].stop)]
        assert own == list(range(end - count, end))


def test_chunks_in_flight_are_fetched_at_once_started_in_order_and_given_as_they_end(
    pipelined: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = noted(monkeypatch, "fetch", "memory", "give")
    one, other = elsewhere([float(i) for i in range(9)]), elsewhere([1.0] * 5)
    requests = [pipelined.iallreduce(one), pipelined.iallreduce(other, "max")]
    before = ["fetch 0", "fetch 1", "fetch 2", "memory 0", "memory 1", "memory 2"]
    assert events[: len(before)] == before
    assert not any(event.startswith("give") for event in events)
    while not requests[1].test():
        pass
    assert other.tolist() == [1.0] * 5
    assert requests[0].wait() is one
    assert one.tolist() == [float(i) for i in range(9)]
    assert events[-3:] == ["give 0", "give 1", "give 2"]
    assert pipelined.ibcast(one).wait().tolist() == [float(i) for i in range(9)]


@pytest.mark.parametrize("size", [5, 9])
def test_blocks_of_any_length_come_back(pipelined: Communicator, size: int) -> None:
    numbers = [float(i) for i in range(size)]
    for buffer in (elsewhere(numbers), torch.tensor(numbers), np.array(numbers, dtype=np.float32)):
        part = pipelined.reduce_scatter(buffer, [size])
        assert type(part) in (type(buffer), torch.Tensor)
        assert part.tolist() == numbers
        assert pipelined.allgatherv(buffer, [size]).tolist() == numbers
    with pytest.raises(UsageError, match=rf"reduce_scatter .* {size} elements, but sum\(counts\) = 20"):
        pipelined.reduce_scatter(elsewhere(numbers), [20])
    with pytest.raises(UsageError, match=rf"allgatherv .* {size} elements, but counts\[0\] = 20"):
        pipelined.allgatherv(elsewhere(numbers), [20])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_blocks_in_half_precision_are_refused(pipelined: Communicator, kind: torch.dtype) -> None:
    for call in (pipelined.reduce_scatter, pipelined.allgatherv):
        with pytest.raises(UsageError, match=r"\.float\(\)"):
            call(elsewhere([1.0] * 20).to(kind), [20])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(pipelined: Communicator, kind: torch.dtype) -> None:
    with pytest.raises(UsageError, match=r"\.float\(\)"):
        pipelined.allreduce(elsewhere([1.0] * 20).to(kind))


def test_a_tensor_that_is_not_row_major_is_refused(pipelined: Communicator) -> None:
    with pytest.raises(UsageError, match="not row-major"):
        pipelined.allreduce(elsewhere([1.0] * 20).view(4, 5).T)


def test_split_communicators_send_in_chunks_too(pipelined: Communicator) -> None:
    child = pipelined.split(0)
    assert child.pipelined
    child.free()
