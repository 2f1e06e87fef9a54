"""A tracker that fails is left out with one warning, and the run comes to the same end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.solvers.sgd import SGD
from hpcopt.train.minimize import minimize
from tests.support.problems import sharded


class Tracker:
    """Counts what it is told, and loses its connection at an iteration."""

    def __init__(self, fails_at: int) -> None:
        self.fails_at, self.heard = fails_at, 0

    def iteration(self, **columns: Any) -> None:
        self.heard += 1
        if columns["iteration"] == self.fails_at:
            raise ConnectionError("the tracker's server is gone")

    def evaluation(self, **columns: Any) -> None:
        pass

    def rank_times(
        self, iteration: int, step: Sequence[float], waited: Sequence[float], others: Sequence[float]
    ) -> None:
        pass


def test_a_run_does_not_notice_a_tracker_that_fails(comm: Communicator, caplog: pytest.LogCaptureFixture) -> None:
    alone = minimize(sharded(comm), SGD(learning_rate=0.1), iterations=6)
    failing, other = Tracker(fails_at=2), Tracker(fails_at=0)
    beside = minimize(sharded(comm), SGD(learning_rate=0.1), iterations=6, listeners=[failing, other])
    assert torch.equal(alone.parameters, beside.parameters)
    assert (failing.heard, other.heard) == (2, 6)
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "Tracker" in warnings[0].message
