"""Fixtures that every test can use."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from hpcopt.comm.communicator import Communicator

# A machine that is busy with other things is slow, which says nothing about what a property is of.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture
def comm() -> Communicator:
    """A communicator of this process alone."""
    from mpi4py import MPI

    return Communicator(MPI.COMM_SELF)
