"""Ranks as threads of one process, so that tests of a grid need no MPI; reductions add in the order of the ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from hpcopt.comm.ledger import Ledger
from hpcopt.comm.together import Together

Result = TypeVar("Result")

PATIENCE = 60.0
"""Seconds after which ranks that wait for each other fail."""


class _Group:
    """What the ranks of one communicator share."""

    def __init__(self, size: int, everything: list[_Group]) -> None:
        self.size, self.slots = size, [None] * size
        self.barrier = threading.Barrier(size, timeout=PATIENCE)
        self.posted: list[list[Any]] = []
        self.arrival = threading.Condition()
        self.everything = everything
        everything.append(self)


class _Posted:
    """A non-blocking call: what all ranks have given is put together when it is waited for."""

    def __init__(
        self,
        group: _Group,
        number: int,
        buffer: torch.Tensor,
        combine: Callable[[list[torch.Tensor]], torch.Tensor],
    ) -> None:
        self._group, self._number, self._buffer, self._combine = group, number, buffer, combine

    def wait(self) -> torch.Tensor:
        """The buffer with the result."""
        group, parts = self._group, self._group.posted[self._number]
        with group.arrival:
            if not group.arrival.wait_for(lambda: all(p is not None for p in parts) or group.barrier.broken, PATIENCE):
                raise threading.BrokenBarrierError
        if group.barrier.broken:
            raise threading.BrokenBarrierError
        return self._buffer.copy_(self._combine(parts))


class SimulatedCommunicator:
    """The part of ``Communicator`` that objectives and checkpoints use."""

    host = "here"

    def __init__(self, group: _Group, rank: int, ledger: Ledger | None = None) -> None:
        self._group, self.rank, self.size = group, rank, group.size
        self.ledger = Ledger() if ledger is None else ledger
        self._begun = 0

    def allreduce(self, buffer: torch.Tensor, op: str = "sum", label: str = "allreduce") -> torch.Tensor:
        """Reduce in place, with the same bits on all ranks."""
        assert buffer.is_contiguous()
        buffer.copy_(self._reduced(torch.stack(self._exchange(buffer.clone())), op))
        self.ledger.add(label, buffer.numel() * buffer.element_size(), 0.0)
        return buffer

    def iallreduce(self, buffer: torch.Tensor, op: str = "sum", label: str = "iallreduce") -> _Posted:
        """As ``allreduce``, complete when all ranks have come to it."""
        return self._post(buffer, lambda parts: self._reduced(torch.stack(parts), op), label)

    def ibcast(self, buffer: torch.Tensor, root: int = 0, label: str = "ibcast") -> _Posted:
        """The buffer of one rank on all of them."""
        return self._post(buffer, lambda parts: parts[root], label)

    def reduce_scalars(self, values: Any, op: str = "sum", label: str = "scalars") -> list[float]:
        """Reduce float64 numbers."""
        numbers = torch.tensor(list(values), dtype=torch.float64)
        self.ledger.add(label, 8 * len(numbers), 0.0)
        return self._reduced(torch.stack(self._exchange(numbers)), op).tolist()

    def broadcast_scalars(self, values: Any, root: int = 0, label: str = "scalars") -> list[float]:
        """The numbers of one rank."""
        self.ledger.add(label, 8 * len(values), 0.0)
        return list(self._exchange(list(values))[root])

    def broadcast_object(self, obj: Any = None, root: int = 0, label: str = "objects") -> Any:
        """The object of one rank."""
        return self._exchange(obj)[root]

    def allgather_objects(self, obj: Any, label: str = "objects") -> list[Any]:
        """The objects of all ranks."""
        return self._exchange(obj)

    def split(self, color: int, key: int = 0) -> SimulatedCommunicator:
        """The ranks of one colour, ordered by key."""
        found = sorted((k, rank) for rank, (c, k) in enumerate(self._exchange((color, key))) if c == color)
        members = [rank for _, rank in found]
        mine = _Group(len(members), self._group.everything) if members[0] == self.rank else None
        group = self._exchange(mine)[members[0]]
        return SimulatedCommunicator(group, members.index(self.rank), self.ledger)

    def free(self) -> None:
        """Nothing to give back."""

    def gather_objects(self, obj: Any, root: int = 0, label: str = "objects") -> list[Any] | None:
        """The objects of all ranks, on one of them."""
        found = self._exchange(obj)
        return found if self.rank == root else None

    def together(self, what: str, groups: bool = False) -> Together:
        """Fails on all ranks or on none."""
        return Together(self, what, groups)  # type: ignore[arg-type]

    def _post(self, buffer: torch.Tensor, combine: Callable[[list[torch.Tensor]], torch.Tensor], label: str) -> _Posted:
        """Give this rank's part of its next non-blocking call."""
        assert buffer.is_contiguous()
        group, number = self._group, self._begun
        self._begun += 1
        with group.arrival:
            while len(group.posted) <= number:
                group.posted.append([None] * group.size)
            group.posted[number][self.rank] = buffer.clone()
            group.arrival.notify_all()
        self.ledger.add(label, buffer.numel() * buffer.element_size(), 0.0)
        return _Posted(group, number, buffer, combine)

    def _reduced(self, stacked: torch.Tensor, op: str) -> torch.Tensor:
        return {"sum": stacked.sum(0), "max": stacked.amax(0), "min": stacked.amin(0)}[op]

    def _exchange(self, value: Any) -> list[Any]:
        group = self._group
        group.slots[self.rank] = value
        group.barrier.wait()
        values = list(group.slots)
        group.barrier.wait()
        return values


def on_ranks(ranks: int, function: Callable[[SimulatedCommunicator], Result]) -> list[Result]:
    """What the function returns on every rank; an error of one rank is raised, and ends the others."""
    groups: list[_Group] = []
    world = _Group(ranks, groups)
    results: list[Any] = [None] * ranks
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = function(SimulatedCommunicator(world, rank))
        except BaseException as error:
            errors.append(error)
            for group in groups:
                group.barrier.abort()
                with group.arrival:
                    group.arrival.notify_all()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    return results
