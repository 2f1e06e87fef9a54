"""Replicas of a network on a grid: each is cut over ranks of its own and has a shard of the instances.

    f(w) = sum over d of N_d / N f_d(w),    R ranks = D replicas of R / D,    rank = d R / D + place in the grid

Every replica is a ``NetworkObjective`` on its shard. What it says of its own instances is weighted by their part of the
batch and summed over the D ranks that hold the same block, in one reduction more than the replica makes itself. A
replica without an instance in a batch takes part with weight 0. Shapes: n numbers of w on this rank, N instances, N_d
of them in this rank's replica, b_d of those in a batch, C outputs, k directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.layout.blocks import variable_grid
from hpcopt.objective.figures import squares_from_mean
from hpcopt.objective.local import Pace
from hpcopt.objective.network.data import check_same
from hpcopt.objective.network.model import PartitionedModel
from hpcopt.objective.network.objective import NetworkObjective
from hpcopt.objective.network.replica_linearization import ReplicaLinearization
from hpcopt.objective.network.variables import CutVariables
from hpcopt.objective.problem import Samples, Sums
from hpcopt.objective.protocol import Batch, Vector, Work
from hpcopt.objective.reductions import tell


class NetworkReplicas(CutVariables):
    """The mean loss over the instances of all replicas, plus weight decay. *Collective*.

    Args:
        comm: all ranks; those of a replica are neighbours.
        replicas: D, a divisor of their number.
        make: makes the network of this rank's replica, on the ranks that it is given and on the replica's shard.
        key: what the user calls D, for messages.

    Attributes:
        replica: this rank's.
        across: the D ranks that hold this rank's block, by the numbers of their replicas.
        number: of this rank's replica.
        samples: N.
        speaks: whether this rank gives what all ranks of its replica know to sums over all ranks.

    Raises:
        UsageError: on all ranks, when D does not divide their number, the networks or their options differ, or as
            ``make`` does, which refuses a shard without an instance.
    """

    def __init__(
        self,
        comm: Communicator,
        replicas: int,
        make: Callable[[Communicator], NetworkObjective],
        key: str = "replicas",
    ) -> None:
        self.comm = comm
        with comm.together("arranging the replicas"):
            arranged = variable_grid(comm.size, replicas, key)
        self.number, place = arranged.coordinates(comm.rank)
        self._ranks, self.across = comm.split(self.number, comm.rank), comm.split(place, comm.rank)
        with comm.together("laying out the replicas", groups=True):
            self.replica = make(self._ranks)
        labels = {"labels": self.replica.classification}
        check_same(comm, {**self.replica.options, **labels})
        self.replica.use_jacobian(comm.broadcast_object(self.replica.jacobian))
        self.speaks, self.counts = place == 0, self.number == 0
        self.replica.model.saves = self.counts
        held = self._told(self.replica.samples)
        self._start, self.samples = sum(held[: self.number]), sum(held)
        self.size, self.weight_decay = self.replica.size, self.replica.weight_decay
        self.flag, self.flags_seen = 0.0, 0.0

    @property
    def layout(self) -> dict[str, Any]:
        """How instances and variables are spread over the ranks, for the record; blocks are those of one replica."""
        return self.replica.layout | {"replicas": self.across.size}

    @property
    def model(self) -> PartitionedModel:
        """This rank's block of the network."""
        return self.replica.model

    @property
    def jacobian(self) -> str:
        """How the replicas make products with it."""
        return self.replica.jacobian

    @property
    def parameters(self) -> int:
        """Weights and biases of the network, counted once."""
        return self.replica.parameters

    @property
    def classification(self) -> bool:
        """Whether the targets are labels."""
        return self.replica.classification

    @property
    def work(self) -> Work:
        """In passes over the shard of this rank's replica, which are passes over all instances in full batches.

        In smaller ones they are so on average: each replica gives its share to every batch, give or take two instances.
        """
        return self.replica.work

    @work.setter
    def work(self, work: Work) -> None:
        self.replica.work = work

    @property
    def pace(self) -> Pace | None:
        """When a rank must end its part of a phase on its own block; all ranks of all replicas keep the same."""
        return self.replica.pace

    @pace.setter
    def pace(self, pace: Pace | None) -> None:
        self.replica.pace = pace

    @property
    def full_batch(self) -> Batch:
        """All instances."""
        return Batch(None, self.replica.samples, self.samples)

    @property
    def blocks(self) -> Sequence[int]:
        """The place of every rank in its grid."""
        return [rank % self._ranks.size for rank in range(self.comm.size)]

    def initial_vector(self) -> Vector:
        """This rank's numbers (n,) of the network as it starts; the whole is the same on any grid."""
        return self.replica.initial_vector()

    def value(self, w: Vector, batch: Batch) -> float:
        """f(w) on the batch. *Collective*: as of the replica, and one reduction of scalars."""
        return self._total(self.replica.value(w, own_part(batch)), batch)

    def value_and_gradient(self, w: Vector, batch: Batch) -> tuple[float, Vector]:
        """f(w) and this rank's numbers (n,) of its gradient, a new vector. *Collective*.

        As of the replica, one reduction of n numbers over the D ranks of the block, and one of scalars.
        """
        value, gradient = self.replica.value_and_gradient(w, own_part(batch))
        return self._total(value, batch), self.mean(gradient, batch, "gradient")

    def mean(self, own: Vector, batch: Batch, label: str) -> Vector:
        """The mean of a vector over the ranks that hold this block, by their instances in the batch. *Collective*.

        Args:
            own: this rank's (n,), which becomes the mean.
            batch: the instances.
            label: the ledger's account.
        """
        if batch.count:
            own.mul_(self.share(batch))
        else:
            own.zero_()
        reduced: Vector = self.across.allreduce(own, label=label)
        return reduced

    def sums(self, own: Sequence[float], label: str) -> list[float]:
        """Sums over the replicas of numbers that all ranks of a replica know, the same everywhere. *Collective*."""
        return self.comm.reduce_scalars([number if self.speaks else 0.0 for number in own], label=label)

    def predict(self, w: Vector, batch: Batch) -> torch.Tensor:
        """The outputs (b_d, C) of the network on the replica's part of the batch. *Collective*."""
        return self.replica.predict(w, own_part(batch))

    def shards(self) -> tuple[int, int]:
        """Position of the replica's first instance in the whole set, and N_d. Local."""
        return self._start, self.replica.samples

    def evaluate(self, w: Vector, test: Samples | None) -> tuple[Sums, Sums]:
        """Figures at w over the training set and over the test set, zeros without one. *Collective*.

        Args:
            w: this rank's numbers (n,).
            test: this rank's feature columns of the replica's test samples, and their labels or its target columns.
        """
        train, tested = self.replica.evaluate(w, test)
        figures = self.sums([*train, *tested], "evaluation")
        return Sums(*figures[:3]), Sums(*figures[3:])

    def estimate_statistics(self, w: Vector) -> None:
        """Nothing: no layer normalises over samples."""

    def moments(self, targets: torch.Tensor) -> tuple[float, float]:
        """Number of a set's samples, and the sum of squared distances of targets from their mean. *Collective*."""
        count, own = squares_from_mean(targets, self.across)
        counted = self.replica.network.is_first and not self.classification
        return count, self.comm.reduce_scalars([own if counted else 0.0], label="evaluation")[0]

    def subset(self, batch: Batch, size: int, number: int) -> Batch:
        """The ``number``-th subset of about ``size`` samples of the batch, some of every replica. *Collective*."""
        before = sum(self._told(batch.count)[: self.number])
        return self.replica.subsets.take(batch, size, number, before)

    def signs(self, number: int) -> Vector:
        """This rank's numbers (n,) of the ``number``-th vector of random signs."""
        return self.replica.signs(number)

    def linearize(self, w: Vector, batch: Batch) -> ReplicaLinearization:
        """The network linearised at w on the batch, by all replicas in one way. *Collective*, as are its products."""
        count = batch.count
        if self.replica.options["jacobian"] == "auto":
            # Rounded factors are refined, which takes other messages than sweeps do.
            count = max(self._told(count))
        own = self.replica.linearize_by(self.replica.kind_for(count), w, own_part(batch))
        return ReplicaLinearization(self, own, batch)

    def free(self) -> None:
        """Give back all communicators. *Collective*."""
        self.replica.free()
        self.across.free()
        self._ranks.free()

    def _told(self, count: int) -> list[int]:
        """A number of every replica. *Collective*, D numbers."""
        return [int(number) for (number,) in tell(self.across, [count], "subset")]

    def _total(self, value: float, batch: Batch) -> float:
        """f(w) from the mean over the replica's part of the batch. *Collective*, one reduction."""
        own = self.share(batch) * value if self.speaks and batch.count else 0.0
        total, flags = self.comm.reduce_scalars([own, self.flag], label="value")
        self.flags_seen += flags
        return total


def own_part(batch: Batch) -> Batch:
    """A replica's part of a batch, as a batch of its own."""
    return Batch(batch.indices, batch.count, batch.count, batch.key, batch.position)
