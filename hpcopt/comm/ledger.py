"""What communication cost: per label the calls, the bytes handed to MPI and the seconds this rank stood waiting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class LedgerTotals(NamedTuple):
    """Sums over all labels of this rank."""

    calls: int
    bytes: int
    seconds_waited: float


class LedgerRow(NamedTuple):
    """One label's account on this rank."""

    label: str
    calls: int
    bytes: int
    seconds_waited: float


class Ledger:
    """Account of one rank, shared by a communicator and all those split from it.

    ``bytes`` is the size of this rank's buffer in each call (the whole vector for reductions and for gathered
    results), not what the network moved, which only the MPI library knows. ``seconds_waited`` is the time in which
    this rank could do nothing else: all of a blocking call (with staging), and of a non-blocking one the start and
    the wait.

    Attributes:
        seconds_for_others: the part of all ``seconds_waited`` in which other ranks had not come yet, as far as barriers
            tell (``Communicator.barriers``).
    """

    __slots__ = ("_accounts", "seconds_for_others")

    def __init__(self) -> None:
        """Start with no labels."""
        self._accounts: dict[str, list[float]] = {}
        self.seconds_for_others = 0.0

    def add(self, label: str, nbytes: int, seconds: float, calls: int = 1) -> None:
        """Book ``calls`` calls under ``label``; well under a microsecond."""
        account = self._accounts.get(label)
        if account is None:
            account = self._accounts[label] = [0, 0, 0.0]
        account[0] += calls
        account[1] += nbytes
        account[2] += seconds

    def snapshot(self) -> dict[str, tuple[float, ...]]:
        """A copy of the accounts, from which ``rows`` can count."""
        return {name: tuple(account) for name, account in self._accounts.items()}

    def rows(self, since: Mapping[str, tuple[float, ...]] | None = None) -> list[LedgerRow]:
        """One row a label, the most expensive first; with ``since``, what was booked after that snapshot."""
        before, rows = since or {}, []
        for name, account in self._accounts.items():
            calls, nbytes, seconds = before.get(name, (0.0, 0.0, 0.0))
            rows.append(LedgerRow(name, int(account[0] - calls), int(account[1] - nbytes), account[2] - seconds))
        return sorted((row for row in rows if row.calls), key=lambda row: (-row.seconds_waited, row.label))

    def totals(self) -> LedgerTotals:
        """Sums over all labels."""
        accounts = self._accounts.values()
        return LedgerTotals(
            int(sum(a[0] for a in accounts)), int(sum(a[1] for a in accounts)), sum(a[2] for a in accounts)
        )

    def clear(self) -> None:
        """Forget everything booked so far."""
        self._accounts.clear()
        self.seconds_for_others = 0.0
