from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hpcopt.analysis import doctor
from hpcopt.analysis.doctor import device_messages, examine
from hpcopt.comm.communicator import Communicator

pytestmark = pytest.mark.mpi


@pytest.fixture
def comm() -> Communicator:
    return Communicator()


def test_rank_0_hears_of_all_ranks(comm: Communicator, tmp_path: Path) -> None:
    report = examine(tmp_path)
    verdicts = comm.allgather_objects(report is not None)
    assert verdicts == [rank == 0 for rank in range(comm.size)]
    correct = True
    if report is not None:
        ranks = next(finding for finding in report.findings if finding.topic == "ranks")
        correct = len(report.facts["ranks"]) == comm.size and ranks.text.startswith(f"{comm.size} rank")
        correct = correct and ("communication" in [finding.topic for finding in report.findings]) == (comm.size > 1)
        correct = correct and [rank["local_rank"] for rank in report.facts["ranks"]] == list(range(comm.size))
        correct = correct and report.facts["disk"]["not_seen_by"] == []
    assert all(comm.allgather_objects(correct))


def test_a_disk_of_one_host_is_noticed(comm: Communicator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the last rank were on another host, which sees nothing of what rank 0 writes."""
    if 0 < comm.rank == comm.size - 1:
        monkeypatch.setattr(doctor, "_is_seen", lambda path: False)
        comm.host = "elsewhere"
    blind = doctor._blind_hosts(comm, tmp_path)
    expected = ["elsewhere"] if comm.size > 1 and comm.rank == 0 else []
    assert all(comm.allgather_objects(blind == expected))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("aware", [True, False])
def test_memory_of_devices_is_measured_as_it_may_be_used(
    comm: Communicator, aware: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of the host stands in for that of a device."""
    monkeypatch.setattr("hpcopt.comm.gpu_probe.probe", lambda comm: (aware, "so it is"))
    found = device_messages(comm, torch.device("cpu"))
    sizes = [8, 1 << 22] if comm.size > 1 else []
    assert (found["gpu_aware"], found["reason"], list(found["staged"])) == (aware, "so it is", sizes)
    assert list(found["direct"]) == (sizes if aware else [])
    assert all(seconds > 0 for seconds in found["staged"].values())
    assert not comm.gpu_aware
