"""What ``hpcopt doctor --measure`` finds on the ranks of the job, in sizes that take no time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hpcopt.analysis.measure import Sizes, measure, write
from hpcopt.comm.communicator import Communicator
from hpcopt.costs.machine import read
from hpcopt.costs.messages import Message

pytestmark = pytest.mark.mpi

TINY = Sizes(orders=(4, 8), solves=(2, 3), memory=(64, 128), messages=(8, 64), work=(1e-6,), seconds=1e-6, least=1)


def test_groups_of_all_sizes_are_measured_and_all_ranks_know(comm: Communicator, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    found = measure(comm, TINY)
    assert comm.allgather_objects(found) == [found] * comm.size
    assert torch.get_num_threads() == threads
    write(found, tmp_path / "new" / "m.json")
    machine = read(tmp_path / "new" / "m.json")
    groups = sorted({1, 2, 4, comm.size} & set(range(1, comm.size + 1)))
    assert [calls.ranks for calls in machine.calls] == groups[1:]
    assert [rates.on_host for rates in machine.rates] == groups
    assert [rates.waits is not None for rates in machine.rates] == [ranks > 1 for ranks in groups]
    assert (machine.about["host"], machine.about["ranks"], machine.on_host) == (comm.host, comm.size, comm.size)
    assert machine.device == ("cuda" if torch.cuda.is_available() else "cpu")
    if comm.size > 1:
        for kind in ("allreduce", "broadcast", "allgather"):
            assert machine.seconds(Message(kind, "gradient", 32, comm.size), comm.size) > 0
    assert machine.rates_of(comm.size).products["float64"](100.0) > 0


def test_one_rank_of_each_host_is_a_group_of_its_own(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the last rank were on another host."""
    if comm.rank == comm.size - 1:
        comm.host = "elsewhere"
    found = measure(comm, TINY)
    among = [(calls["ranks"], calls["hosts"]) for calls in found["calls"]]
    assert found["hosts"] == min(comm.size, 2)
    assert ((2, 2) in among) == (comm.size > 1)
    assert (comm.size, min(comm.size, 2)) in among or comm.size == 1
