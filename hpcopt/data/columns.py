"""From samples that are spread over the ranks to features that are: every rank gives rows and is given columns.

Shapes: N samples of all ranks, b of them on this rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpcopt.comm.communicator import Communicator
from hpcopt.layout.block import Block


def columns_of(rows: np.ndarray, groups: Sequence[Block], own: Block, comm: Communicator) -> np.ndarray:
    """The columns ``own`` (N, own.count) of all ranks' rows (b, columns), in the order of the ranks. *Collective*.

    One group of columns after the other goes to all ranks, so that no rank holds more than two of them at a time
    besides its rows.

    Args:
        rows: this rank's samples, flat.
        groups: all groups of columns, the same on all ranks.
        own: the one that this rank wants.
        comm: all ranks.
    """
    counts = [int(count) for count in comm.allgather_objects(len(rows), label="columns")]
    wanted = np.empty((sum(counts), 0), rows.dtype)
    for group in groups:
        part = np.ascontiguousarray(rows[:, group.slice])
        found = comm.allgatherv(part.reshape(-1), [count * group.count for count in counts], label="columns")
        if group == own:
            wanted = found.reshape(sum(counts), group.count)
    return wanted


def all_of(labels: np.ndarray, comm: Communicator) -> np.ndarray:
    """One number a sample, of all ranks, in the order of the ranks, (N,). *Collective*."""
    counts = comm.allgather_objects(len(labels), label="columns")
    return comm.allgatherv(np.ascontiguousarray(labels), counts, label="columns")
