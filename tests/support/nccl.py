"""What is used of CuPy's module of NCCL, with sums by MPI of memory of the host."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from hpcopt.comm.communicator import Communicator


class FakeNccl:
    """The module.

    Args:
        groups: the communicators of whose ranks there will be groups, of different sizes.
    """

    available = True
    NCCL_FLOAT32, NCCL_FLOAT64, NCCL_SUM = 7, 8, 0

    def __init__(self, *groups: Communicator) -> None:
        self.groups = {group.size: group for group in groups}
        self.made: list[tuple[int, tuple[int, ...], int]] = []
        self.sums: list[tuple[int, int]] = []
        self.destroyed = 0

    def get_unique_id(self) -> tuple[int, ...]:
        """A number that no other call has."""
        return (id(self), len(self.made))

    def NcclCommunicator(self, size: int, number: tuple[int, ...], rank: int) -> Any:  # noqa: N802
        """A group."""
        self.made.append((size, number, rank))
        return _Group(self, self.groups[size])


class _Group:
    def __init__(self, module: FakeNccl, comm: Communicator) -> None:
        self._module, self._comm = module, comm

    def allReduce(self, given: int, taken: int, count: int, kind: int, op: int, stream: int) -> None:  # noqa: N802
        """The sum, at once."""
        assert (given, op, stream) == (taken, self._module.NCCL_SUM, 0)
        number = {self._module.NCCL_FLOAT32: ctypes.c_float, self._module.NCCL_FLOAT64: ctypes.c_double}[kind]
        memory = np.ctypeslib.as_array((number * count).from_address(given))
        memory[...] = sum(self._comm.mpi.allgather(memory.copy()))
        self._module.sums.append((self._comm.size, count))

    def destroy(self) -> None:
        """The group is no more."""
        self._module.destroyed += 1
