"""From samples that are spread over the ranks to features that are: every rank gives rows and is given columns.

Shapes: N samples of all ranks, b of them on this rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hpcopt.comm.communicator import Communicator
from hpcopt.data.dataset import Part
from hpcopt.layout.block import Block
from hpcopt.layout.network import NetworkLayout


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


def by_columns(part: Part, layout: NetworkLayout, comm: Communicator) -> Part:
    """What a rank of a cut network needs of a set: its feature columns of all samples. *Collective*.

    Args:
        part: this rank's contiguous shard, as it was loaded.
        layout: the network.
        comm: all ranks of the layout.

    Returns:
        Inputs (N, u), and labels (N,) or this rank's target columns (N, v).
    """
    rows = part.inputs.reshape(len(part.inputs), math.prod(part.inputs.shape[1:]))
    inputs = columns_of(rows, layout.parts_of(0), layout.features(comm.rank), comm)
    if part.targets.ndim == 1:
        targets = columns_of(part.targets[:, None], [Block(0, 1)], Block(0, 1), comm)[:, 0]
    else:
        targets = columns_of(part.targets, layout.parts_of(layout.layers), layout.outputs(comm.rank), comm)
    return Part(inputs, targets, 0, len(inputs))
