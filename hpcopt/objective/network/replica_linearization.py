"""A network on a grid, linearised on a batch of which every replica has a part.

Letters and shapes are those of ``NetworkReplicas``; b_d and N_d are those of the batch here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hpcopt.objective.network.block import NetworkBlock
from hpcopt.objective.network.explicit import ExplicitLinearization
from hpcopt.objective.network.implicit import ImplicitLinearization
from hpcopt.objective.protocol import Batch, BlockFactors, Vector

if TYPE_CHECKING:
    from hpcopt.objective.network.replicas import NetworkReplicas


class ReplicaLinearization:
    """J, J^T and Gauss-Newton products: each a replica's own, and one reduction over the replicas. *Collective*.

    Args:
        objective: the replicas.
        own: the network of this rank's replica, linearised on its part of the batch.
        batch: the instances.
    """

    def __init__(
        self, objective: NetworkReplicas, own: ExplicitLinearization | ImplicitLinearization, batch: Batch
    ) -> None:
        self._objective, self._own, self._batch = objective, own, batch

    def jvp(self, v: Vector) -> torch.Tensor:
        """J v (b_d, C) of the replica's instances. *Collective*."""
        return self._own.jvp(v)

    def vjp(self, u: torch.Tensor) -> Vector:
        """This rank's numbers (n,) of J^T u, for u (b_d, C) of the replica's instances. *Collective*."""
        total: Vector = self._objective.across.allreduce(self._own.vjp(u), label="product")
        return total

    def gauss_newton(self, v: Vector) -> Vector:
        """This rank's numbers of (1/B) J^T B J v + weight_decay v, a new vector. *Collective*."""
        return self._objective.mean(self._own.gauss_newton(v), self._batch, "product")

    def curvatures(self, directions: torch.Tensor) -> torch.Tensor:
        """D G D^T for this rank's columns D (k, n) of stacked directions: (k, k), float64, the same on all ranks.

        G is that of all instances of the batch. *Collective*.
        """
        own = self._own.curvatures(directions) * self._objective.share(self._batch)
        sums = self._objective.sums(own.flatten().tolist(), "curvatures")
        return torch.tensor(sums, dtype=torch.float64).view(own.shape)

    @property
    def exact(self) -> ReplicaLinearization | None:
        """As of the replica's own."""
        own = getattr(self._own, "exact", None)
        return None if own is None else ReplicaLinearization(self._objective, own, self._batch)

    @property
    def block(self) -> ReplicaBlock:
        """This rank's diagonal block of its replica's G.

        Raises:
            UsageError: as of the replica.
        """
        return ReplicaBlock(self._objective, self._own.block, self._batch)


class ReplicaBlock:
    """G_pp of the replica's instances only, so that nothing is sent for its products, and the mean of what is found.

    With its replica's G_d rank p of replica d solves (G_d,pp + lambda I) d_dp = -g_p, and the direction is the mean
    over the replicas by their numbers of instances N_d,

        d_p = sum over d of N_d / N d_dp,    g_p^T d_p = sum over d of N_d / N g_p^T d_dp < 0,

    since g is the gradient on all instances of all replicas and every d_dp, wherever conjugate gradients end, has
    g_p^T d_dp < 0. That mean is a choice of this package: Wang et al. 2018 (arXiv 1802.00130) have no replicas. The
    other way, products with the G of all instances, would need a reduction in every iteration.

    Args:
        objective: the replicas.
        own: the block of this rank's replica.
        batch: the instances.
    """

    def __init__(self, objective: NetworkReplicas, own: NetworkBlock, batch: Batch) -> None:
        self._objective, self._own, self._batch = objective, own, batch
        self.samples, self.outputs, self.shapes = own.samples, own.outputs, own.shapes
        self.weight_decay, self.memory = own.weight_decay, own.memory

    def begin(self) -> None:
        """The phase begins, on all ranks of all replicas. *Collective* where the pace's is."""
        self._own.begin()

    def goes_on(self, done: int) -> bool:
        """Whether this rank may make another iteration after ``done`` of them."""
        return self._own.goes_on(done)

    def end(self) -> None:
        """This rank has ended the phase. *Collective* where the pace's is."""
        self._own.end()

    def product(self, v: Vector, by_layer: bool = False) -> Vector:
        """G_d,pp v, a new vector (n,). No communication."""
        return self._own.product(v, by_layer)

    def factors(self) -> BlockFactors:
        """This rank's columns of J for the replica's instances. No communication."""
        return self._own.factors()

    def mean(self, direction: Vector) -> Vector:
        """d_p from every replica's d_dp, which ``direction`` becomes. *Collective*, one reduction of n numbers."""
        return self._objective.mean(direction, self._batch, "block")

    def share(self, iterations: int, products: float, finite: bool) -> tuple[tuple[int, ...], bool]:
        """What all ranks of all replicas came to; their mean work is counted. *Collective*, one reduction."""
        return self._own.share_over(self._objective.comm, iterations, products, finite)
