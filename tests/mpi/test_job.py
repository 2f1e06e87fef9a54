"""A job made ready on several ranks, and on machines of which not every one has a GPU."""

from __future__ import annotations

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.config import parse_job
from hpcopt.errors import UsageError
from hpcopt.train.devices import choose_device, choose_transport
from hpcopt.train.job import PreparedJob
from tests.support.gpus import pretend

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("setting", [True, False])
def test_a_job_says_whether_its_calls_begin_with_barriers(comm: Communicator, setting: bool) -> None:
    job = 'run.epochs = 1\ndata.source = "digits"\nmodel.name = "mlp"\nsolver.name = "sgd"\n'
    PreparedJob(parse_job(job, [f"debug.barriers={str(setting).lower()}"]), comm)
    assert comm.barriers is setting


@pytest.fixture
def gpu_on_rank_0_only(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, ["GPU-a"] if comm.rank == 0 else [])


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


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_one_gpu_for_two_ranks_is_refused_on_all_ranks_unless_it_is_asked_for(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # The last two ranks see one GPU, as under a batch system that gives a task one each; the others their own.
    pretend(monkeypatch, [f"GPU-{min(comm.rank, comm.size - 2)}"])
    with pytest.raises(UsageError, match=r"2 of them the same one.*run\.share_gpu = true"):
        choose_device(name, comm)
    assert choose_device(name, comm, share=True).index == 0


@pytest.mark.mpi(min_size=2)
def test_ranks_that_see_all_gpus_take_one_each(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, [f"GPU-{i}" for i in range(comm.size)])
    assert comm.allgather_objects(choose_device("auto", comm).index) == list(range(comm.size))


@pytest.mark.parametrize(("aware", "expected"), [("true", True), ("false", False), ('"auto"', False)])
def test_the_communicator_learns_whether_its_mpi_reads_device_memory(
    comm: Communicator, aware: str, expected: bool
) -> None:
    text = f'[data]\nsource = "digits"\n[run]\ndevice = "cpu"\n[parallel]\ngpu_aware = {aware}\n'
    prepared = PreparedJob(parse_job(text), comm)
    assert prepared.comm.gpu_aware is expected
    assert prepared.objective.comm.gpu_aware is expected
    assert not prepared.comm.pipelined


@pytest.mark.parametrize(("aware", "verdict"), [(True, None), (False, None), ("auto", True), ("auto", False)])
def test_a_device_on_one_rank_makes_all_send_in_chunks_unless_mpi_takes_its_memory(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch, aware: bool | str, verdict: bool | None
) -> None:
    monkeypatch.setattr("hpcopt.train.devices.probe", lambda _: (verdict, "found out"))
    device = torch.device("cuda", 0) if comm.rank == 0 else torch.device("cpu")
    said = choose_transport(aware, device, comm)
    expected = aware if verdict is None else verdict
    assert (comm.gpu_aware, comm.pipelined) == (expected, not expected)
    assert said.endswith("found out" if aware == "auto" else "as asked")
