"""A block of local work that fails on all ranks or on none."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal

import hpcopt.errors as known_errors
from hpcopt.comm.faults import mark_collective
from hpcopt.errors import HpcoptError

if TYPE_CHECKING:
    from hpcopt.comm.communicator import Communicator


@dataclass(frozen=True)
class Report:
    """How one rank failed, in a form that can be sent. ``kind`` names an error class of ``hpcopt.errors``, or None."""

    rank: int
    host: str
    kind: str | None
    name: str
    message: str
    trace: str
    exit_status: int


class Together:
    """The context manager behind ``Communicator.together``."""

    __slots__ = ("_agreed", "_comm", "_what")

    def __init__(self, comm: Communicator, what: str, groups: bool = False) -> None:
        """Remember where and what; no communication yet."""
        self._comm = comm
        self._what = what
        self._agreed: type[Exception] = HpcoptError if groups else Exception

    def __enter__(self) -> None:
        """Local."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        """Agree on the outcome. *Collective*, except for SystemExit and the like, which pass at once."""
        if error is not None and not isinstance(error, self._agreed):
            return False
        comm = self._comm
        if not comm.reduce_scalars([float(error is not None)], op="max", label="together")[0]:
            return False
        mine = None if error is None else _report(comm, error)
        reports = comm.allgather_objects(mine, label="together")
        if error is not None and _all_alike(reports):
            mark_collective(error, 0)
            return False
        raise agreed_error([report for report in reports if report], self._what) from error


def agreed_error(reports: list[Report], what: str) -> Exception:
    """The error all ranks raise for these failures: an unexpected one first, then the lowest rank's."""
    worst = next((report for report in reports if report.kind is None), reports[0])
    others = len(reports) - 1
    more = f" ({others} more rank{'s' if others > 1 else ''} failed too)" if others else ""
    where = f"on rank {worst.rank} ({worst.host})"
    error: Exception
    if worst.kind is None:
        error = RuntimeError(f"{where}, {what}: {worst.name}: {worst.message}{more}\n{worst.trace}")
    else:
        error = _rebuild(worst, f"{where}: {worst.message}{more}")
    mark_collective(error, worst.rank)
    return error


def _report(comm: Communicator, error: Exception) -> Report:
    kind = None
    if isinstance(error, HpcoptError):
        # The nearest class every rank has: a class made by a user may not be importable elsewhere.
        kind = next(base.__name__ for base in type(error).__mro__ if getattr(known_errors, base.__name__, None) is base)
    trace = "".join(traceback.format_exception(error))
    status = getattr(error, "exit_status", 1)
    return Report(comm.rank, comm.host, kind, type(error).__name__, str(error), trace, status)


def _all_alike(reports: list[Report | None]) -> bool:
    return None not in reports and len({(r.kind, r.name, r.message) for r in reports if r}) == 1


def _rebuild(report: Report, message: str) -> HpcoptError:
    error: HpcoptError = getattr(known_errors, report.kind or "HpcoptError")(message)
    error.exit_status = report.exit_status
    return error
