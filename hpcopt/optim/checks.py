"""What every optimiser of torch checks of its arguments."""

from __future__ import annotations

from hpcopt.checks import is_number
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


def check_alike(comm: Communicator, facts: tuple[object, ...]) -> None:
    """Refuse different optimisers on different ranks. *Collective*.

    Raises:
        UsageError: on all ranks, naming the first that differs from rank 0.
    """
    found = comm.allgather_objects(facts)
    if other := next((rank for rank, theirs in enumerate(found) if theirs != found[0]), 0):
        raise UsageError(
            f"rank 0 and rank {other} have different optimisers (parameters, precision, options): {found[0]} and "
            f"{found[other]}. Build the same model and give the same options on all ranks",
            collective=True,
        )
