"""What every optimiser of torch checks of its arguments."""

from __future__ import annotations

from collections.abc import Mapping

from hpcopt.checks import is_number
from hpcopt.comm.alike import first_difference
from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError


def check_constants(method: str, weight_decay: object, full_batch: object) -> None:
    """Refuse what is no weight decay or no flag.

    Raises:
        UsageError: see above.
    """
    if not is_number(weight_decay, 0.0):
        raise UsageError(f"{method}: weight_decay = {weight_decay!r} must be a number of at least 0")
    if not isinstance(full_batch, bool):
        raise UsageError(f"{method}: full_batch = {full_batch!r} must be True or False")


def check_alike(comm: Communicator, facts: Mapping[str, object]) -> None:
    """Refuse optimisers that are not the same on all ranks, by their ``facts`` in words. *Collective*.

    Raises:
        UsageError: on all ranks, naming the first that differs from rank 0.
    """
    if found := first_difference(comm, facts, "objects"):
        raise UsageError(
            f"rank 0 and rank {found.rank} have different optimisers: {found.what}: {found.first} and {found.other}. "
            "Build the same model and give the same options on all ranks",
            collective=True,
        )
