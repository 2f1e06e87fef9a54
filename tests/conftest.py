"""Fixtures that every test can use."""

from __future__ import annotations

import pytest

from hpcopt.comm.communicator import Communicator


@pytest.fixture
def comm() -> Communicator:
    """A communicator of this process alone."""
    from mpi4py import MPI

    return Communicator(MPI.COMM_SELF)
