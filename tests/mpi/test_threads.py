"""Threads and places on the host, as several ranks see them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.comm.launch import affinity, choose_threads

pytestmark = pytest.mark.mpi


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_all_ranks_compute_with_the_same_number_of_threads(comm: Communicator) -> None:
    report = choose_threads(comm, {})
    assert report.source == "affinity"
    assert torch.get_num_threads() == report.threads
    assert set(comm.allgather_objects(report.threads)) == {report.threads}
    assert 1 <= report.threads <= len(affinity())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_the_rank_with_the_fewest_cores_decides_for_all(comm: Communicator) -> None:
    before = os.sched_getaffinity(0)
    if comm.rank == comm.size - 1:
        os.sched_setaffinity(0, {min(before)})
    try:
        assert choose_threads(comm, {}).threads == 1
    finally:
        os.sched_setaffinity(0, before)


def test_a_number_set_on_one_rank_keeps_all_as_they_are(comm: Communicator) -> None:
    torch.set_num_threads(1)
    report = choose_threads(comm, {"OMP_NUM_THREADS": "1"} if comm.rank == 0 else {})
    assert (report.threads, report.source) == (1, "OMP_NUM_THREADS")
    assert torch.get_num_threads() == 1


def test_ranks_of_a_host_are_numbered_without_gaps(comm: Communicator) -> None:
    report = choose_threads(comm, {"OMP_NUM_THREADS": "1"})
    places = comm.allgather_objects((comm.host, report.local_rank))
    assert sorted(place for host, place in places if host == comm.host) == list(range(report.local_size))
