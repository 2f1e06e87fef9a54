"""Objectives that split the ranks into groups give all of these back: an MPI has only so many communicators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mpi4py import MPI

from hpcopt.comm.communicator import Communicator
from hpcopt.layout.network import network_grid
from tests.support import grids
from tests.support.networks import ONE, THREE, on_grid, on_own_ranks, replicated

pytestmark = pytest.mark.mpi


def blocks(comm: Communicator) -> Any:
    """Blocks of variables on two rows."""
    grids.divides(comm, 2)
    return grids.on_grid(comm, 2)


def replicas(comm: Communicator) -> Any:
    """Two replicas where the ranks can be halved, else one a rank."""
    number = 2 if comm.size % 2 == 0 else comm.size
    return replicated(comm, number, network_grid(THREE, comm.size // number), THREE)


MAKERS: dict[str, Callable[[Communicator], Any]] = {
    "blocks of variables": blocks,
    "a network on a grid": lambda comm: on_grid(comm, network_grid(THREE, comm.size), THREE),
    "layers on ranks of their own": lambda comm: on_own_ranks(comm, (1, comm.size), ONE),
    "replicas": replicas,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_groups_are_given_back_once(comm: Communicator, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    groups: list[Communicator] = []
    derive = Communicator._derived

    def noted(self: Communicator, made: MPI.Comm) -> Communicator:
        groups.append(derive(self, made))
        return groups[-1]

    monkeypatch.setattr(Communicator, "_derived", noted)
    objective = MAKERS[kind](comm)
    assert groups or kind == "blocks of variables"  # these need none where a row has one rank
    assert all(group.mpi != MPI.COMM_NULL for group in groups)
    objective.free()
    objective.free()
    assert all(group.mpi == MPI.COMM_NULL for group in groups)
