"""Distribution of items of unequal cost over parts. Deterministic, so that every rank computes the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heapify, heapreplace


def balanced_assignment(costs: Sequence[float], parts: int) -> list[int]:
    """Return the owner of each item, with the largest load of a part kept small.

    Longest processing time first (Graham 1969, Bounds on multiprocessing timing anomalies): items by falling cost,
    each to the part with the least load so far. The largest load is at most 4/3 - 1/(3 parts) of the best possible.
    Ties go to the lower index of item and part.

    >>> balanced_assignment([3, 3, 2, 2, 2], 2)
    [0, 1, 0, 1, 0]

    Raises:
        ValueError: there is no part, or a cost is negative or not finite.
    """
    if parts < 1:
        raise ValueError(f"cannot assign to parts = {parts}: there must be at least 1")
    for i, cost in enumerate(costs):
        if not (cost >= 0 and math.isfinite(cost)):
            raise ValueError(f"cost {cost!r} of item {i} is not a finite number of at least 0")
    owners = [0] * len(costs)
    loads = [(0.0, part) for part in range(parts)]
    heapify(loads)
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, part = loads[0]
        owners[item] = part
        heapreplace(loads, (load + costs[item], part))
    return owners
