"""A job made ready on several ranks, and on machines of which not every one has a GPU."""

from __future__ import annotations

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.config import parse_job
from hpcopt.errors import UsageError
from hpcopt.train.job import PreparedJob, choose_device

pytestmark = pytest.mark.mpi


@pytest.fixture
def gpu_on_rank_0_only(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: comm.rank == 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)


@pytest.mark.usefixtures("gpu_on_rank_0_only")
def test_auto_takes_a_gpu_where_there_is_one_and_no_rank_waits_for_the_others(comm: Communicator) -> None:
    assert choose_device("auto", comm).type == ("cuda" if comm.rank == 0 else "cpu")
    comm.barrier()


@pytest.mark.usefixtures("gpu_on_rank_0_only")
def test_cpu_is_the_cpu_everywhere(comm: Communicator) -> None:
    assert choose_device("cpu", comm).type == "cpu"


@pytest.mark.mpi(min_size=2)
@pytest.mark.usefixtures("gpu_on_rank_0_only")
def test_cuda_is_refused_on_all_ranks_when_one_has_none(comm: Communicator) -> None:
    with pytest.raises(UsageError, match="torch sees no GPU"):
        choose_device("cuda", comm)


@pytest.mark.parametrize("aware", [True, False])
def test_the_communicator_learns_whether_its_mpi_reads_device_memory(comm: Communicator, aware: bool) -> None:
    text = f'[data]\nsource = "digits"\n[run]\ndevice = "cpu"\n[parallel]\ngpu_aware = {str(aware).lower()}\n'
    prepared = PreparedJob(parse_job(text), comm)
    assert prepared.comm.gpu_aware is aware
    assert prepared.objective.comm.gpu_aware is aware
