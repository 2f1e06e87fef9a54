"""What communication cost: per label the calls, the bytes handed to MPI and the seconds this rank stood waiting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class LedgerTotals(NamedTuple):
    """Sums over all labels of this rank."""

    calls: int
    bytes: int
    seconds_waited: float
    seconds_for_others: float = 0.0


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
        calls, bytes, seconds_waited: sums over all labels.
        seconds_for_others: the part of all ``seconds_waited`` in which other ranks had not come yet, as far as barriers
            tell (``Communicator.barriers``).
    """

    __slots__ = ("_accounts", "bytes", "calls", "seconds_for_others", "seconds_waited")

    def __init__(self) -> None:
        """Start with no labels."""
        self._accounts: dict[str, list[float]] = {}
        self.clear()

    def add(self, label: str, nbytes: int, seconds: float, calls: int = 1) -> None:
        """Book ``calls`` calls under ``label``; well under a microsecond."""
        account = self._accounts.get(label)
        if account is None:
            account = self._accounts[label] = [0, 0, 0.0]
        account[0] += calls
        account[1] += nbytes
        account[2] += seconds
        self.calls += calls
        self.bytes += nbytes
        self.seconds_waited += seconds

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
        return LedgerTotals(self.calls, self.bytes, self.seconds_waited, self.seconds_for_others)

    def since(self, before: LedgerTotals) -> LedgerTotals:
        """What was added to ``before``."""
        calls, nbytes, waited, for_others = before
        spent = self.seconds_waited - waited, self.seconds_for_others - for_others
        return LedgerTotals(self.calls - calls, self.bytes - nbytes, *spent)

    def clear(self) -> None:
        """Forget everything booked so far."""
        self._accounts.clear()
        self.calls = self.bytes = 0
        self.seconds_waited = self.seconds_for_others = 0.0
