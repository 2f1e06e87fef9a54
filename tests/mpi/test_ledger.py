"""What the ledger books of calls between ranks, and what barriers tell of the wait for others."""

from __future__ import annotations

from collections.abc import Callable
from time import sleep

import numpy as np
import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.comm.ledger import Ledger
from hpcopt.comm.own_operation import allreduce_by
from hpcopt.errors import UsageError

pytestmark = pytest.mark.mpi


def test_the_ledger_counts_calls_and_bytes_by_label(comm: Communicator) -> None:
    counts = [2] * comm.size
    comm.allreduce(torch.ones(10), label="gradient")
    comm.allreduce(torch.ones(10, dtype=torch.float64), label="gradient")
    comm.iallreduce(np.ones(3), label="bucket").wait()
    comm.bcast(torch.ones(4, dtype=torch.int32))
    comm.reduce_scatter(torch.ones(2 * comm.size), counts)
    comm.allgatherv(torch.ones(2), counts)
    comm.reduce_scalars([1.0, 2.0])
    comm.barrier()
    found = {row.label: (row.calls, row.bytes) for row in comm.ledger.rows()}
    assert found == {
        "gradient": (2, 120),
        "bucket": (1, 24),
        "bcast": (1, 16),
        "reduce_scatter": (1, 8 * comm.size),
        "allgatherv": (1, 8 * comm.size),
        "scalars": (1, 16),
        "barrier": (1, 0),
    }
    assert comm.ledger.totals()[:2] == (8, 176 + 16 * comm.size)
    assert comm.ledger.totals().seconds_waited > 0


def test_with_barriers_the_wait_for_the_last_rank_is_kept_apart(comm: Communicator) -> None:
    counts = [1] * comm.size
    calls: list[Callable[[Communicator], object]] = [
        lambda comm: comm.allreduce(np.ones(3)),
        lambda comm: comm.bcast(np.ones(3)),
        lambda comm: comm.reduce_scatter(np.ones(comm.size), counts),
        lambda comm: comm.allgatherv(np.ones(1), counts),
        lambda comm: comm.reduce_scalars([1.0]),
        lambda comm: comm.broadcast_scalars([1.0]),
        lambda comm: comm.gather_objects("a"),
        lambda comm: allreduce_by(comm, np.ones(1), np.add),
        lambda comm: comm.barrier(),
    ]
    for call in calls:
        comm.barriers = False
        comm.ledger.clear()
        call(comm)
        assert comm.ledger.seconds_for_others == 0
        comm.barriers = True
        comm.ledger.clear()
        call(comm)
        apart = comm.ledger.seconds_for_others
        assert 0 < apart < comm.ledger.totals().seconds_waited


def test_a_group_has_the_barriers_of_all(comm: Communicator) -> None:
    comm.barriers = True
    group = comm.split(0)
    assert group.barriers
    group.free()


@pytest.mark.mpi(min_size=2)
def test_the_others_wait_for_a_rank_that_comes_late(comm: Communicator) -> None:
    comm.barriers = True
    comm.barrier()
    comm.ledger.clear()
    if comm.rank == 0:
        sleep(0.1)
    comm.allreduce(np.ones(3))
    assert comm.rank == 0 or comm.ledger.seconds_for_others > 0.05


def test_a_refused_call_is_not_booked(comm: Communicator) -> None:
    with pytest.raises(UsageError):
        comm.allreduce(torch.ones(3), "mean")
    assert comm.ledger.rows() == []


def test_a_ledger_can_be_given(comm: Communicator) -> None:
    ledger = Ledger()
    Communicator(comm.mpi, ledger=ledger).barrier()
    assert ledger.totals().calls == 1
