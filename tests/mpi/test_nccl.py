"""Large sums of devices by NCCL, which is simulated: which ones, over which ranks, and who agrees to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hpcopt.comm import nccl
from hpcopt.comm.communicator import Communicator
from hpcopt.comm.nccl import Nccl
from hpcopt.errors import UsageError
from hpcopt.train.devices import choose_sums
from tests.support.gpus import pretend
from tests.support.nccl import FakeNccl

pytestmark = pytest.mark.mpi
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl, "LEAST_BYTES", 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_sums_go_by_nccl_and_everything_else_by_mpi(comm: Communicator, dtype: torch.dtype) -> None:
    module = FakeNccl(comm)
    comm.nccl = Nccl(module, comm.mpi, CPU)
    ranks = comm.size * (comm.size - 1) / 2
    large = torch.arange(8, dtype=dtype) + comm.rank
    expected = [comm.size * i + ranks for i in range(8)]
    assert comm.allreduce(large).tolist() == expected
    again = torch.arange(8, dtype=dtype) + comm.rank
    request = comm.iallreduce(again)
    assert request.test()
    assert request.wait() is again
    assert again.tolist() == expected
    assert module.sums == [(comm.size, 8)] * 2
    others = [torch.ones(8, dtype=dtype).numpy(), torch.ones(8, dtype=torch.int64), torch.ones(3, dtype=dtype)]
    for other in others:
        assert comm.allreduce(other).tolist() == [comm.size] * len(other)
    assert comm.allreduce(torch.full((8,), float(comm.rank), dtype=dtype), "max").tolist() == [comm.size - 1.0] * 8
    assert len(module.sums) == 2
    rows = {row.label: (row.calls, row.bytes) for row in comm.ledger.rows()}
    assert rows["iallreduce"] == (1, large.nbytes)


@pytest.mark.mpi(min_size=3)
def test_groups_of_ranks_have_groups_of_nccl_made_at_their_first_sum(comm: Communicator) -> None:
    comm.nccl = Nccl(FakeNccl(), comm.mpi, CPU)
    child = comm.split(int(comm.rank == 0))
    module = FakeNccl(comm, child)
    comm.nccl = Nccl(module, comm.mpi, CPU)
    child.nccl = comm.nccl.beside(child.mpi)
    for group in (child, comm, child):
        assert group.allreduce(torch.ones(8)).tolist() == [group.size] * 8
    assert [(size, rank) for size, _, rank in module.made] == [(child.size, child.rank), (comm.size, comm.rank)]
    assert len({number for _, number, _ in comm.allgather_objects(module.made[1])}) == 1
    child.free()
    assert module.destroyed == 1


def own_gpus(comm: Communicator, monkeypatch: pytest.MonkeyPatch, module: Any) -> torch.device:
    """Every rank sees a GPU of its own; sums are made in host memory."""
    pretend(monkeypatch, [f"GPU-{comm.rank}"])
    monkeypatch.setattr("hpcopt.train.devices.load_nccl", lambda: module)
    monkeypatch.setattr("hpcopt.train.devices.Nccl", lambda module, mpi, device: Nccl(module, mpi, CPU))
    right = nccl.sums_are_right
    monkeypatch.setattr("hpcopt.train.devices.sums_are_right", lambda *args: right(*args[:3], CPU))
    return torch.device("cuda", 0)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("asked", [True, "auto"])
def test_it_is_taken_where_every_rank_has_a_gpu_and_a_trial_is_right(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch, asked: bool | str
) -> None:
    device = own_gpus(comm, monkeypatch, FakeNccl(comm))
    assert choose_sums(asked, device, comm) == "NCCL: its sums are right"
    assert comm.nccl is not None


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(
    ("trouble", "why"),
    [("absent", "No module named 'cupy'"), ("wrong", "sums of NCCL were wrong"), ("shared", "GPU of its own")],
)
def test_trouble_of_one_rank_is_every_ranks(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch, trouble: str, why: str
) -> None:
    device, last = own_gpus(comm, monkeypatch, FakeNccl(comm)), comm.rank == comm.size - 1
    if trouble == "absent" and last:

        def absent() -> None:
            raise ImportError("No module named 'cupy'")

        monkeypatch.setattr("hpcopt.train.devices.load_nccl", absent)
    if trouble == "wrong" and last:
        trial = nccl.sums_are_right
        monkeypatch.setattr("hpcopt.train.devices.sums_are_right", lambda *args: not trial(*args[:3], CPU))
    if trouble == "shared":
        pretend(monkeypatch, [f"GPU-{min(comm.rank, comm.size - 2)}"])
    assert why in choose_sums("auto", device, comm)
    assert comm.nccl is None
    with pytest.raises(UsageError, match=f"parallel.nccl = true, but .*{why}.*auto"):
        choose_sums(True, device, comm)


def test_without_gpus_or_unasked_all_sums_are_mpis(comm: Communicator) -> None:
    assert choose_sums(False, CPU, comm) == "MPI: as asked"
    assert choose_sums("auto", CPU, comm).startswith("MPI: not every one")
    assert comm.nccl is None
