from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpcopt.costs.machine import Curve, Machine, default_path, find, read
from hpcopt.costs.messages import Message
from hpcopt.errors import UsageError
from tests.support.measurements import calls, written

SHORT, LONG = 10e-6, 8.01e-3
"""Seconds of 8 bytes and of 8 million over the two ranks that were measured."""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return read(written(tmp_path / "m.json"))


def reduction(nbytes: float, ranks: int, calls: float = 1.0, kind: str = "allreduce") -> Message:
    return Message(kind, "gradient", nbytes * calls, ranks, calls)


def test_between_measured_sizes_logarithms_are_straight_below_seconds_are_constant_above_in_proportion() -> None:
    curve = Curve([(1e2, 1e-4), (1e4, 1e-2)])
    assert curve(1e3) == pytest.approx(1e-3)
    assert curve(1.0) == 1e-4
    assert curve(1e5) == pytest.approx(1e-1)


def test_what_was_measured_is_what_is_said(machine: Machine) -> None:
    assert machine.seconds(reduction(8, 2), 2) == pytest.approx(SHORT)
    assert machine.seconds(reduction(8e6, 2, calls=3), 2) == pytest.approx(3 * LONG)
    assert machine.seconds(reduction(8, 2, kind="broadcast"), 2) == pytest.approx(SHORT / 2)
    assert machine.seconds(reduction(8e6, 2, kind="allgather"), 2) == pytest.approx(LONG / 2)
    assert machine.seconds(reduction(8, 1), 2) == 0
    assert machine.unsure == set()


def test_other_rank_counts_follow_from_the_algorithms(machine: Machine) -> None:
    """Alpha is 10 us, and beta 0.99875 ns for 8 million bytes in 8.01 ms less two messages."""
    alpha, beta, size = 10e-6, (8.01e-3 - 20e-6) / 8e6, 8e6
    assert machine.seconds(reduction(8, 1024), 2) == pytest.approx(10 * SHORT, rel=1e-3)
    doubling, halving = 1 * (alpha + size * beta), 2 * alpha + size * beta
    expected = LONG * (4 * alpha + 1.5 * size * beta) / min(doubling, halving)
    assert machine.seconds(reduction(size, 4), 4) == pytest.approx(expected)
    assert any("more than 2 ranks" in note for note in machine.unsure)


def test_a_group_on_several_hosts_goes_by_calls_between_hosts(tmp_path: Path) -> None:
    machine = read(written(tmp_path / "m.json", calls=[calls(4), calls(2, hosts=2, short=1e-3)]))
    assert machine.seconds(reduction(8, 4), 4) == pytest.approx(SHORT)
    assert machine.seconds(reduction(8, 4), 2) == pytest.approx(2e-3, rel=1e-3)


def test_calls_between_hosts_that_were_not_measured_are_said_to_be_a_guess(machine: Machine) -> None:
    machine.seconds(reduction(8, 2), 1)
    assert any("between hosts was not measured" in note for note in machine.unsure)


def test_ranks_beyond_the_cores_share_them(machine: Machine) -> None:
    rates = machine.rates_of(8)
    assert (rates.on_host, rates.slower) == (8, 4.0)
    assert machine.rates_of(2).slower == machine.rates_of(1).slower == 1.0
    assert any("8 ranks on a host were not measured" in note for note in machine.unsure)


def test_one_rank_measures_no_communication(tmp_path: Path) -> None:
    machine = read(written(tmp_path / "m.json", calls=[]))
    with pytest.raises(UsageError, match="Measure on at least two"):
        machine.seconds(reduction(8, 2), 2)


@pytest.mark.parametrize("changes", [{"format": 0}, {"rates": [{"on_host": 1}]}, {"calls": [calls(2, short=0.0)]}])
def test_a_file_that_is_no_measurement_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="Measure again"):
        read(written(tmp_path / "m.json", **changes))


def test_the_measurement_of_this_host_comes_before_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="hpcopt doctor --measure"):
        find(None)
    old, new = (written(tmp_path / "hpcopt" / f"measured-{name}.json") for name in ("ab", "aa"))
    os.utime(old, (1, 1))
    assert find(None) == new
    own = written(default_path())
    os.utime(own, (1, 1))
    assert find(None) == own
    assert find(old) == old
    with pytest.raises(UsageError, match="nothing"):
        find(tmp_path / "nothing.json")
