"""Whether all ranks have the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from hpcopt.comm.communicator import Communicator


class Difference(NamedTuple):
    """What is not the same on all ranks: its name, rank 0's, and the other one, of the first ``rank`` that has it."""

    what: str
    first: object
    other: object
    rank: int


def first_difference(comm: Communicator, facts: Mapping[str, object], label: str) -> Difference | None:
    """The first of rank 0's facts that a rank has differently, the same on all ranks; else None. *Collective*.

    Args:
        comm: the ranks.
        facts: what should be the same by what it is called, picklable. A rank that lacks one does not differ in it.
        label: of the messages in the ledger.
    """
    first, *others = comm.allgather_objects(dict(facts), label=label)
    for what, expected in first.items():
        for rank, found in enumerate(others, start=1):
            if found.get(what, expected) != expected:
                return Difference(what, expected, found[what], rank)
    return None
