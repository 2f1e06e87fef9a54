"""A running mean of the iterates on mini-batches, the better point to evaluate and to deliver.

Polynomial-decay averaging (Shamir and Zhang 2013, ICML): the mean is over about the latest ``part`` of all iterates.
"""

from __future__ import annotations

from typing import cast

from hpcopt.objective.protocol import Batch, Vector
from hpcopt.solvers.solver import State


def empty_average(parameters: Vector) -> State:
    """The state's entries for a mean that has seen nothing yet, at w (n,)."""
    return {"average": parameters.clone(), "averaged": 0}


def take_into_average(state: State, batch: Batch, part: float) -> None:
    """Take w in. On a full batch, and as long as the part is one iterate at most, the mean is w itself."""
    average, parameters = cast(Vector, state["average"]), cast(Vector, state["parameters"])
    state["averaged"] = int(state["averaged"]) + 1
    average.lerp_(parameters, 1.0 if batch.indices is None else 1 / max(1.0, part * int(state["averaged"])))
