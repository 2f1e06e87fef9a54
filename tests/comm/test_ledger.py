from __future__ import annotations

import pytest

from hpcopt.comm.ledger import Ledger, LedgerTotals


def test_an_empty_ledger_has_cost_nothing() -> None:
    assert Ledger().totals() == LedgerTotals(0, 0, 0.0)
    assert Ledger().rows() == []


def test_calls_bytes_and_seconds_are_added_by_label() -> None:
    ledger = Ledger()
    ledger.add("gradient", 100, 0.5)
    ledger.add("gradient", 50, 0.25)
    ledger.add("scalars", 8, 1.0)
    assert ledger.rows() == [("scalars", 1, 8, 1.0), ("gradient", 2, 150, 0.75)]
    assert ledger.totals() == (3, 158, 1.75, 0.0)


def test_a_wait_adds_seconds_to_a_call_booked_before() -> None:
    ledger = Ledger()
    ledger.add("bucket", 100, 0.5)
    ledger.add("bucket", 0, 0.5, calls=0)
    assert ledger.rows() == [("bucket", 1, 100, 1.0)]


def test_counts_stay_exact_integers() -> None:
    ledger = Ledger()
    for _ in range(3):
        ledger.add("large", 2**60 + 1, 0.0)
    assert ledger.totals().bytes == 3 * (2**60 + 1)
    assert type(ledger.totals().calls) is int


def test_clear_forgets() -> None:
    ledger = Ledger()
    ledger.add("a", 1, 1.0)
    ledger.seconds_for_others = 0.5
    ledger.clear()
    assert ledger.totals() == pytest.approx((0, 0, 0.0, 0.0))
    assert ledger.seconds_for_others == 0
