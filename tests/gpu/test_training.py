"""Every method with its model on a GPU, and the buffers of a device on their way to MPI."""

from __future__ import annotations

import warnings

import pytest
import torch

from hpcopt.comm import chunks
from hpcopt.comm.communicator import Communicator
from hpcopt.comm.staging import as_tensor
from hpcopt.config import parse_job
from hpcopt.kernels.choice import kernels_on
from hpcopt.kernels.launch import CupyLauncher
from hpcopt.objective.network.objective import NetworkObjective
from hpcopt.train.job import PreparedJob
from tests.support.waits import LOSSES, OPTIONS, after_some_steps, as_on_a_device, counted

METHODS = ["trust_region", "apts", "lbfgs", "newton", "nlcg", "slimtrain", "sgd", "adam", "lars"]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_takes_the_same_steps_on_a_gpu_as_on_the_processor(
    comm: Communicator, device: torch.device, method: str
) -> None:
    losses, loss, options = [], LOSSES.get(method, "cross_entropy"), OPTIONS.get(method, "")
    for name in (device.type, "cpu"):
        text = f'[run]\ndevice = "{name}"\nprecision = "float64"\niterations = 5\n[data]\nsource = "digits"\n'
        text += 'batch = "full"\n[model]\nname = "mlp"\nwidths = [20]\n'
        text += f'[loss]\nname = "{loss}"\n[solver]\nname = "{method}"\n{options}'
        prepared = PreparedJob(parse_job(text), comm)
        assert prepared.objective.model.device.type == name
        losses.append(prepared.run(None).final.train_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("method", [*METHODS, "nlcg, paper", "newton, plain"])
def test_a_step_waits_no_more_often_than_was_counted_on_the_processor(
    comm: Communicator, device: torch.device, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Torch says where an operation waits for the device."""
    step = after_some_steps(method, comm, device.type, 1000)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    as_on_a_device(monkeypatch)
    found, _ = counted(after_some_steps(method, comm, "cpu", 1000))
    places = [f"{each.filename}:{each.lineno}" for each in said if "synchroniz" in str(each.message)]
    assert len(places) <= sum(found.values()), places


@pytest.mark.usefixtures("launcher")
def test_tensors_and_cupy_arrays_are_the_same_memory(comm: Communicator, device: torch.device) -> None:
    cupy = pytest.importorskip("cupy")
    tensor = torch.ones(1000, device=device)
    assert cupy.from_dlpack(tensor).data.ptr == tensor.data_ptr()
    with cupy.cuda.Device(device.index), cupy.cuda.Stream(non_blocking=True):
        # Not waited for: torch waits for the stream that fills the array.
        array = cupy.arange(1 << 20, dtype=cupy.float32) * 2
        assert as_tensor(array).data_ptr() == array.data.ptr
        for comm.pipelined in (False, True):
            assert comm.allreduce(array) is array
            assert comm.iallreduce(array).wait() is array
        assert float(array[-1]) == 2.0 * ((1 << 20) - 1)


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
def test_a_tensor_goes_to_mpi_and_back_whole_and_in_chunks(
    comm: Communicator, device: torch.device, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1 << 16)
    for comm.pipelined in (False, True):
        tensor = torch.zeros(size, device=device)
        expected = torch.arange(size, dtype=torch.float32)
        # Not waited for: what fills the tensor must be complete before it is sent.
        tensor.copy_(expected, non_blocking=True).mul_(2)
        comm.allreduce(tensor)
        assert torch.equal(tensor.add(1).cpu(), 2 * expected + 1)
        tensor.mul_(2)
        comm.iallreduce(tensor).wait()
        assert torch.equal(comm.reduce_scatter(tensor, [size]).cpu(), 4 * expected)
        assert torch.equal(comm.allgatherv(tensor.add(1), [size]).cpu(), 4 * expected + 1)
        gathered = comm.iallgatherv(tensor.add(2), torch.empty_like(tensor), [size])
        assert torch.equal(gathered.wait().cpu(), 4 * expected + 2)


@pytest.mark.usefixtures("launcher")
def test_a_block_is_solved_without_waiting_but_at_decisions(
    comm: Communicator, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch raises where an operation waits for the device; looks at the state of the iterations are left out."""
    inputs = torch.rand(64, 20, device=device)
    labels = torch.randint(5, (64,), device=device)
    objective = NetworkObjective([20, 16, 5], "tanh", "cross_entropy", inputs, labels, comm)
    w = objective.initial_vector()
    block = objective.linearize(w, objective.full_batch).block
    _, gradient = objective.value_and_gradient(w, objective.full_batch)
    vectors = kernels_on(device, gradient.dtype).vectors
    assert vectors is not None
    steps = vectors.conjugate_steps(gradient, 0.0)
    steps.advance(block.product, 0.1)
    monkeypatch.setattr(steps, "_state", lambda: 0.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            steps.advance(block.product, 0.1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert steps.end()[0] == 21


def test_kernels_of_two_precisions_live_side_by_side(launcher: CupyLauncher, device: torch.device) -> None:
    for dtype in (torch.float32, torch.float64, torch.float32):
        parts, total = (
            torch.ones(3, 2, dtype=torch.float64, device=device),
            torch.zeros(2, dtype=torch.float64, device=device),
        )
        launcher("add_parts", dtype, 2, 32, parts, total, 3, 2)
        assert total.tolist() == [3.0, 3.0]
