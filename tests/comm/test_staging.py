"""What may be communicated and what is refused; device buffers with stand-ins for the device."""

from __future__ import annotations

import contextlib
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from hpcopt.comm import chunks, staging
from hpcopt.comm.communicator import Communicator
from hpcopt.comm.staging import HostCopy, HostPool, as_tensor, stage
from hpcopt.errors import UsageError
from tests.support.buffers import TensorElsewhere, elsewhere

REFUSED = [
    pytest.param(torch.ones(3, dtype=torch.float16), r"float16.*\.float\(\)", id="float16"),
    pytest.param(torch.ones(3, dtype=torch.bfloat16), r"bfloat16.*\.float\(\)", id="bfloat16"),
    pytest.param(torch.ones(3, dtype=torch.bool), "bool", id="bool"),
    pytest.param(torch.ones(3, dtype=torch.complex64), "complex64", id="complex"),
    pytest.param(torch.ones(3, 4).T, r"shape \(4, 3\) with strides \(1, 4\).*\.contiguous\(\)", id="transposed"),
    pytest.param(torch.ones(6)[::2], "not row-major contiguous", id="strided"),
    pytest.param(torch.ones(1).expand(4), "not row-major contiguous", id="expanded"),
    pytest.param(torch.eye(3).to_sparse(), "layout", id="sparse"),
    pytest.param(np.ones(3, dtype=np.float16), "float16", id="NumPy float16"),
    pytest.param(np.ones(3, dtype=">f8"), ">f8", id="NumPy in foreign byte order"),
    pytest.param(np.ones((3, 4), order="F"), r"column-major \(Fortran order\)", id="NumPy in Fortran order"),
    pytest.param(np.ones(6)[::2], "strided", id="NumPy strided"),
    pytest.param(np.ones(6)[::-1], "strided", id="NumPy reversed"),
    pytest.param(np.array(["a"]), "<U1", id="NumPy strings"),
    pytest.param([1.0, 2.0], "list.*reduce_scalars", id="list"),
    pytest.param(3.0, "float.*reduce_scalars", id="number"),
]


@pytest.mark.parametrize(("buffer", "message"), REFUSED)
def test_what_cannot_be_communicated_is_refused_by_every_call(comm: Communicator, buffer: Any, message: str) -> None:
    size = [len(buffer)] if hasattr(buffer, "__len__") else [1]
    for call in (comm.allreduce, comm.iallreduce, comm.bcast):
        with pytest.raises(UsageError, match=message):
            call(buffer)
    for call in (comm.reduce_scatter, comm.allgatherv):
        with pytest.raises(UsageError, match=message):
            call(buffer, size)
    assert comm.ledger.rows() == []


def test_a_read_only_array_cannot_take_a_result_but_can_be_sent(comm: Communicator) -> None:
    array = np.ones(3)
    array.flags.writeable = False
    with pytest.raises(UsageError, match="read-only"):
        comm.allreduce(array)
    assert comm.allgatherv(array, [3]).tolist() == [1, 1, 1]


@pytest.mark.parametrize("op", ["mean", "SUM", "prod", ""])
def test_an_unknown_op_is_refused(comm: Communicator, op: str) -> None:
    for call in (comm.allreduce, comm.iallreduce):
        with pytest.raises(UsageError, match="sum, max, min"):
            call(torch.ones(3), op)
    with pytest.raises(UsageError, match="sum, max, min"):
        comm.reduce_scalars([1.0], op)


def test_roots_counts_colors_and_lengths_are_checked(comm: Communicator) -> None:
    for call in (comm.bcast, comm.broadcast_scalars, comm.broadcast_object, comm.gather_objects):
        with pytest.raises(UsageError, match="root = 1 is not a rank: this communicator has ranks 0 to 0"):
            call(np.ones(2), root=1)
    with pytest.raises(UsageError, match=r"counts = \[1, 2\] must hold one number"):
        comm.allgatherv(torch.ones(3), [1, 2])
    with pytest.raises(UsageError, match=r"counts = \[-1\]"):
        comm.reduce_scatter(torch.ones(3), [-1])
    with pytest.raises(UsageError, match=r"allgatherv .* 3 elements, but counts\[0\] = 2"):
        comm.allgatherv(torch.ones(3), [2])
    with pytest.raises(UsageError, match=r"iallgatherv .* 3 elements, but counts\[0\] = 2"):
        comm.iallgatherv(torch.ones(3), torch.ones(2), [2])
    with pytest.raises(UsageError, match=r"iallgatherv .* 3 elements, but sum\(counts\) = 2"):
        comm.iallgatherv(torch.ones(2), torch.ones(3), [2])
    with pytest.raises(UsageError, match=r"reduce_scatter .* 3 elements, but sum\(counts\) = 2"):
        comm.reduce_scatter(torch.ones(3), [2])
    with pytest.raises(UsageError, match="color = -1"):
        comm.split(-1)


def test_only_an_mpi_communicator_can_be_wrapped() -> None:
    with pytest.raises(UsageError, match="COMM_WORLD"):
        Communicator("world")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="chunk = 0"):
        Communicator(chunk=0)


def test_a_tensor_on_a_device_goes_through_a_host_buffer_and_back(comm: Communicator) -> None:
    tensor = elsewhere([1.0, 2.0, 3.0])
    staged = stage(tensor, HostPool())
    assert staged.copy is not None
    assert bytes(staged.memory) == np.array([1, 2, 3], dtype=np.float32).tobytes()
    staged.memory[:4] = np.array([9], dtype=np.float32).tobytes()
    assert tensor.tolist() == [1, 2, 3]
    staged.finish()
    assert tensor.tolist() == [9, 2, 3]
    assert comm.allreduce(tensor).tolist() == [9, 2, 3]
    assert comm.iallreduce(tensor, "max").wait().tolist() == [9, 2, 3]


def test_what_the_device_holds_is_not_fetched_when_mpi_only_writes() -> None:
    tensor = elsewhere([1.0, 2.0])
    copy = stage(tensor, HostPool(), load=False)
    copy.memory[:] = b"\0" * 8
    copy.finish(store=False)
    assert tensor.tolist() == [1, 2]


def test_host_buffers_are_used_again_but_never_shared_by_two_calls_in_flight() -> None:
    pool = HostPool()
    first, second = stage(elsewhere([1.0, 2.0]), pool), stage(elsewhere([3.0]), pool)
    assert first.memory.address != second.memory.address
    address = first.memory.address
    first.finish()
    third = stage(elsewhere([4.0]), pool)
    assert third.memory.address == address
    assert third.nbytes == 4
    second.finish()
    third.finish()


def test_a_host_buffer_that_is_too_small_is_not_taken() -> None:
    pool = HostPool()
    stage(elsewhere([1.0]), pool).finish()
    large = stage(elsewhere([1.0, 2.0, 3.0]), pool)
    assert bytes(large.memory) == np.array([1, 2, 3], dtype=np.float32).tobytes()


def test_the_pool_keeps_the_largest_buffers() -> None:
    pool = HostPool(limit=2)
    for size in (4, 2, 3):
        pool.give("kind", np.zeros(size, dtype=np.uint8))
    assert [len(pool.take("kind", 1)) for _ in range(2)] == [3, 4]  # type: ignore[arg-type]
    assert pool.take("kind", 1) is None
    for size in (5, 6):
        pool.give("kind", torch.zeros(size, dtype=torch.uint8))
    assert len(pool.take("kind", 6)) == 6  # type: ignore[arg-type]
    assert pool.take("other", 1) is None


def test_an_empty_device_buffer_can_be_staged(comm: Communicator) -> None:
    assert comm.allreduce(elsewhere([])).numel() == 0


def test_the_stream_is_waited_for_before_reading_and_after_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(staging, "synchronize", lambda buffer: events.append("synchronize"))
    copy = HostCopy(HostPool(), torch.ones(2))
    copy.load()
    assert events == ["synchronize"]
    copy.store()
    assert events == ["synchronize", "synchronize"]


class FakeCupyArray:
    """What is used of a CuPy array: it offers its memory to other libraries. Here that is host memory."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)
        self.dtype, self.itemsize, self.nbytes = self.values.dtype, self.values.itemsize, self.values.nbytes

    def __dlpack__(self, **options: Any) -> Any:
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.values.__dlpack_device__()

    device = contextlib.nullcontext()


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake: Any = ModuleType("cupy")
    fake.ndarray = FakeCupyArray
    fake.empty = lambda count, dtype: FakeCupyArray(np.full(count, -1, dtype=dtype))
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


@pytest.mark.usefixtures("cupy")
def test_a_cupy_array_is_used_where_it_is(comm: Communicator) -> None:
    array = FakeCupyArray(np.arange(6.0).reshape(2, 3))
    assert comm.allreduce(array) is array
    assert comm.iallreduce(array).wait() is array
    assert array.values.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert stage(array, HostPool()).memory.address == array.values.ctypes.data
    assert as_tensor(array).data_ptr() == array.values.ctypes.data


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("pipelined", [False, True])
def test_results_of_cupy_parts_are_cupy_arrays(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch, pipelined: bool
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 16)
    comm.pipelined = pipelined
    whole = comm.allgatherv(FakeCupyArray(np.arange(3)), [3])
    part = comm.reduce_scatter(FakeCupyArray(np.arange(3)), [3])
    assert isinstance(whole, FakeCupyArray)
    assert whole.values.tolist() == [0, 1, 2]
    assert part.values.tolist() == [0, 1, 2]


def test_a_gpu_aware_mpi_gets_the_device_address_after_a_synchronisation(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.Tensor] = []
    monkeypatch.setattr(staging, "synchronize", waited.append)
    monkeypatch.setattr(TensorElsewhere, "is_cuda", True)
    tensor = elsewhere([1.0, 2.0])
    staged = stage(tensor, HostPool(), gpu_aware=True)
    assert staged.copy is None
    assert staged.memory.address == tensor.data_ptr()
    assert waited[0] is tensor


@pytest.mark.usefixtures("cupy")
def test_cupy_arrays_are_checked_like_the_others(comm: Communicator) -> None:
    with pytest.raises(UsageError, match="not row-major contiguous"):
        comm.allreduce(FakeCupyArray(np.ones((2, 3), order="F")))
    with pytest.raises(UsageError, match="float16"):
        comm.allreduce(FakeCupyArray(np.ones(3, dtype=np.float16)))
    with pytest.raises(UsageError, match=r"type <U1 could not be handed to torch.*build for CUDA"):
        comm.allreduce(FakeCupyArray(np.array(["a"])))
