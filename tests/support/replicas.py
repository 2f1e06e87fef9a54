"""Replicas of small networks on simulated ranks, and the same network on one rank that holds everything."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch

from hpcopt.objective.network.replicas import NetworkReplicas
from tests.support.networks import DECAY, FOUR, THREE, assemble, on_grid, positions, replicated, start
from tests.support.simulated import on_ranks

PAPER = "every layer on ranks of its own"
SPLITS = {FOUR: (2, 1, 1, 1, 1), THREE: (1, 1, 2, 2)}
CASES = [(1, (1, 2)), (2, (1, 1)), (2, (2, 1)), (2, (1, 2)), (3, (1, 1)), (3, (2, 2)), (2, PAPER)]
PROBLEMS = [(FOUR, "squared"), (THREE, "cross_entropy")]


def cells(case: Any) -> int:
    """Ranks of a replica."""
    cut = case[1]
    return math.prod(cut) if len(cut) == 2 else sum(a * b for a, b in pairwise(cut))


def ranks_of(case: Any) -> int:
    """Of all replicas."""
    return case[0] * cells(case)


def made(comm: Any, case: Any, problem: Any, **options: Any) -> tuple[NetworkReplicas, torch.Tensor]:
    """The objective and this rank's numbers of a point."""
    objective = replicated(comm, *case, *problem, weight_decay=DECAY, micro_batch=4, **options)
    return objective, own(objective, start(problem[0]))


def own(objective: NetworkReplicas, whole: torch.Tensor) -> torch.Tensor:
    """This rank's numbers of a whole vector."""
    return whole[positions(objective.replica.partition, objective.replica.comm.rank)]


def whole_vectors(found: list[tuple[NetworkReplicas, torch.Tensor]]) -> list[torch.Tensor]:
    """The whole vector of each replica from those of all ranks."""
    objective, size = found[0][0], found[0][0].replica.comm.size
    parts = [vector for _, vector in found]
    return [assemble(objective.replica.partition, parts[i : i + size]) for i in range(0, len(parts), size)]


def alone(problem: Any, function: Any) -> Any:
    """What a function of the objective and the point returns on one rank that holds everything."""

    def run(comm: Any) -> Any:
        return function(on_grid(comm, (1, 1), *problem, weight_decay=DECAY), start(problem[0]))

    return on_ranks(1, run)[0]
