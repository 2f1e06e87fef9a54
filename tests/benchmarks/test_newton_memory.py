"""The benchmark of a rank's memory sees what a step takes, and what falls more slowly than 1 / R."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from benchmarks.newton.memory import Measured, Peak, peaks, share, verdict
from hpcopt.comm.communicator import Communicator

MB = 10**6
linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel keeps the peak")


def measured(ranks: int, peak: float) -> Measured:
    return Measured(ranks, (1, ranks), 1000, 0.0, (0.0, peak, peak / 2, 0.0), 0.0)


@linux
def test_a_peak_is_that_of_its_own_step_though_the_memory_is_given_back() -> None:
    peak = Peak()
    assert peak.of(lambda: np.ones(100 * MB, np.uint8).sum())[1] > 90 * MB
    assert peak.of(lambda: np.ones(40 * MB, np.uint8).sum())[1] < 90 * MB


@linux
def test_what_a_step_returns_is_still_there_in_the_next() -> None:
    peak = Peak()
    kept, _ = peak.of(lambda: np.ones(100 * MB, np.uint8))
    assert peak.of(lambda: None)[1] > 90 * MB
    assert kept.sum() == 100 * MB


@linux
def test_every_step_has_a_peak_and_holds_the_vectors_so_far(comm: Communicator) -> None:
    """Vectors above 32 MB, which the C library always takes fresh from the system."""
    _, found = peaks([3000, 3000, 1500, 10], 16, 8, comm)
    vector = 4 * (3001 * 3000 + 3001 * 1500 + 1501 * 10)
    for vectors, peak in zip((1, 2, 3, 4), found, strict=True):
        assert vectors - 0.5 < peak / vector < vectors + 1.5


def test_half_the_memory_on_two_ranks_is_a_share_of_1() -> None:
    one = measured(1, 400.0)
    assert share(measured(2, 200.0), one) == 1.0
    assert share(measured(4, 200.0), one) == 2.0


def test_the_verdict_is_of_the_worst_number_of_ranks() -> None:
    assert "at most 1.02" in verdict([measured(1, 400.0), measured(2, 204.0), measured(4, 101.0)])
    assert "NOT met" in verdict([measured(1, 400.0), measured(2, 300.0), measured(4, 101.0)])
