"""Large tensors in chunks: every chunk is where it must be before it is read or written. Ranks in tests/mpi."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hpcopt.comm import chunks
from hpcopt.comm.chunks import DeviceChunks, in_chunks
from hpcopt.comm.communicator import Communicator
from hpcopt.comm.staging import HostPool
from hpcopt.errors import UsageError
from tests.comm.test_staging import elsewhere


@pytest.fixture
def pipelined(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> Communicator:
    """Chunks of four numbers of float32."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 16)
    comm.pipelined = True
    return comm


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
    events: list[str] = []
    for name in ("fetch", "give"):
        act = getattr(DeviceChunks, name)

        def said(self: DeviceChunks, number: int, act: Any = act, name: str = name) -> None:
            """The act, and that it was."""
            events.append(f"{name} {number}")
            act(self, number)

        monkeypatch.setattr(DeviceChunks, name, said)
    tensor = elsewhere([float(i) for i in range(9)])
    call = started(events, lambda part: pipelined.mpi.Ibcast(part, 0))
    assert in_chunks(tensor, HostPool(), call, load=load, store=store) == 36
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
    pool = HostPool()
    for _ in range(2):
        held = DeviceChunks(elsewhere([1.0] * 9), 4, pool)
        addresses = {held.memory(number)[0].address for number in range(3)}
        assert len(addresses) == 2
        held.end(store=True)
    assert len([raw for raw in (pool.take("pageable", 1), pool.take("pageable", 1)) if raw is not None]) == 2
    assert pool.take("pageable", 1) is None


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
