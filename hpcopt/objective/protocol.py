"""What a solver sees of the problem: values, gradients and curvature products, already reduced over the ranks.

Shapes: n parameters (of this rank: all of w when replicated, its block when partitioned), N training samples,
B samples in a batch, k and l numbers of stacked vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

Vector = torch.Tensor
"""One contiguous float32 or float64 buffer of n numbers on the objective's device."""


@dataclass(frozen=True, eq=False)
class Batch:
    """The samples of one iteration, as this rank holds them.

    Attributes:
        indices: positions in this rank's shard, int64, ascending; None for the whole shard.
        count: number of this rank's samples in the batch (0 is allowed).
        total: number of samples in the batch over all ranks.
        key: (epoch, number of the batch in its epoch), which seeds what is random within the iteration.
        position: epochs done before this batch, a fraction within an epoch.
        ends_epoch: whether it is the last of several in its epoch.
    """

    indices: torch.Tensor | None
    count: int
    total: int
    key: tuple[int, int] = (0, 0)
    position: float = 0.0
    ends_epoch: bool = False


@dataclass
class Work:
    """Evaluations counted in passes over the training set: 1.0 is one evaluation of all N samples.

    Attributes:
        values: forward passes, those of a linearisation among them.
        gradients: forward and backward passes.
        curvature_products: products with the Gauss-Newton matrix; J v and J^T u are half of one each.
        curvature_cost: of a product, in gradients. A layer with w weights takes 2 w operations a sample forward, 4 w
            backward, and 4 w for either half of a product, whose forward pass is not repeated: 8 w over 6 w. Less
            where the first layer is large, whose inputs have neither tangents nor gradients: 1.1 on 784-512-256-10.
    """

    values: float = 0.0
    gradients: float = 0.0
    curvature_products: float = 0.0
    curvature_cost: float = field(default=4 / 3)

    @property
    def gradient_equivalents(self) -> float:
        """Weighted sum: a value costs 1/3, a gradient 1, a curvature product its cost in gradients."""
        return self.values / 3 + self.gradients + self.curvature_products * self.curvature_cost


@dataclass(frozen=True)
class LayerColumns:
    """A rank's columns of J for its part of one layer: dz_c / dW_tj = M[i, c, j] Z[i, t].

    Attributes:
        inputs: Z (N, u), on N samples; a last column of ones stands for biases.
        factors: M (N, C, v); None in the last layer, whose outputs are linear: M is a part of the identity.
        outputs: which of the layer's outputs the rank holds, v of them.
        place: where the block lies in the rank's flat vector: u rows of v numbers.
    """

    inputs: torch.Tensor
    factors: torch.Tensor | None
    outputs: slice
    place: slice


@dataclass(frozen=True)
class BlockFactors:
    """A rank's columns of J in factors.

    Attributes:
        layers: of all layers.
        probabilities: (N, C) for cross-entropy; None where the Hessian of the loss is the identity.
    """

    layers: Sequence[LayerColumns]
    probabilities: torch.Tensor | None


class Block(Protocol):
    """G_pp, the diagonal block of G for the variables of this rank, and the phase in which ranks work on it alone.

    In each phase every rank calls ``begin`` and ``end`` once, with products in between; then ``share`` and ``mean``.

    Attributes:
        samples: N in G; 0 where this rank's group has none, which then has nothing to solve.
        outputs: C.
        shapes: (u, v) of the rank's part of each layer, biases among the u.
        weight_decay: what it adds to the diagonal of G.
        memory: most bytes that a direct solution may take on this rank.
    """

    samples: int
    outputs: int
    shapes: Sequence[tuple[int, int]]
    weight_decay: float
    memory: int

    def begin(self) -> None:
        """The phase begins, on all ranks."""
        ...

    def goes_on(self, done: int) -> bool:
        """Whether this rank may make another iteration of the phase after ``done`` of them; asked from 1 on."""
        ...

    def end(self) -> None:
        """This rank has ended the phase."""
        ...

    def product(self, v: Vector, by_layer: bool = False) -> Vector:
        """G_pp v, a new vector (n,); ``by_layer`` leaves out what couples the layers. No communication."""
        ...

    def factors(self) -> BlockFactors:
        """This rank's columns of J. No communication."""
        ...

    def mean(self, direction: Vector) -> Vector:
        """The mean of what the ranks found that hold the same variables, by their parts of the samples. *Collective*.

        ``direction`` itself, without communication, where every block is one rank's.
        """
        ...

    def share(self, iterations: int, products: float, finite: bool) -> tuple[tuple[int, ...], bool]:
        """The iterations of every rank, and whether all found finite numbers. *Collective*, one small reduction.

        Args:
            iterations: this rank's.
            products: their work in products with the block, for the count of work.
            finite: whether this rank's numbers were.
        """
        ...


class Linearization(Protocol):
    """The model linearised at one point on one batch: J is the (B*C, n) Jacobian of the outputs."""

    def jvp(self, v: Vector) -> torch.Tensor:
        """J v for this rank's samples, shape (count, C)."""
        ...

    def vjp(self, u: torch.Tensor) -> Vector:
        """J^T u summed over all ranks; u has shape (count, C). *Collective*."""
        ...

    def gauss_newton(self, v: Vector) -> Vector:
        """(1/B) J^T H J v, with H the Hessian of the loss in output space, plus weight decay. *Collective*.

        Returns:
            A new vector that the caller owns.
        """
        ...

    def curvatures(self, directions: torch.Tensor) -> torch.Tensor:
        """D G D^T for stacked directions D (k, n) and the G of ``gauss_newton``: (k, k), float64, on the CPU.

        The same on all ranks. *Collective*, one reduction of scalars, by forward mode.
        """
        ...

    @property
    def block(self) -> Block:
        """This rank's diagonal block of G.

        Raises:
            UsageError: on all ranks, when the variables are not cut over them or no rank knows its block alone.
        """
        ...


class LocalPart(Protocol):
    """f_d: the mean loss over the samples of this rank's group in the batch, plus weight decay, without communication.

    A group is one rank, or the ranks that hold the same samples and vary different blocks of the variables. f_d is a
    function of the m variables that this rank may change, x; all others stay where the phase began.
    """

    def begin(self, w: Vector) -> None:
        """A local phase begins at w (n,), on all ranks."""
        ...

    def take(self, vector: Vector) -> Vector:
        """The part (m,) of a vector (n,) that belongs to this rank's variables; may be the vector itself."""
        ...

    def put(self, own: Vector) -> Vector:
        """The vector (n,) that is ``own`` (m,) at this rank's variables and 0 elsewhere; may be ``own`` itself."""
        ...

    def value_and_gradient(self, x: Vector, batch: Batch) -> tuple[float, Vector]:
        """f_d and its gradient (m,), a new vector; without samples only the weight decay is left."""
        ...

    def goes_on(self, done: int) -> bool:
        """Whether this rank may make another iteration of the phase after ``done`` of them; asked from 1 on."""
        ...

    def end(self) -> None:
        """This rank has ended the phase; the others need not."""
        ...


class Objective(Protocol):
    """f(w) = mean over the batch of loss(model(w, x), y) + weight_decay/2 |w|^2 = sum over groups of w_d f_d(w)."""

    size: int
    work: Work

    @property
    def local(self) -> LocalPart:
        """What this rank can evaluate alone; its work is counted with the next ``combine``."""
        ...

    @property
    def blocks(self) -> Sequence[int]:
        """Which block of the variables each rank may change in a local phase; 0 everywhere when all may change all."""
        ...

    @property
    def deterministic(self) -> bool:
        """Whether values on the same samples agree whatever the batch's key; the same on all ranks."""
        ...

    def initial_vector(self) -> Vector:
        """A fresh copy of the model's parameters as they are at the start."""
        ...

    def value(self, w: Vector, batch: Batch) -> float:
        """f(w) on the batch. *Collective*, one reduction."""
        ...

    def value_and_gradient(self, w: Vector, batch: Batch) -> tuple[float, Vector]:
        """f(w) and its gradient, a new vector the caller owns. *Collective*, one reduction."""
        ...

    def value_and_gradients(self, w: Vector, batch: Batch) -> tuple[float, Vector, float, Vector]:
        """As ``value_and_gradient``, f_d(w) of this rank's group and its gradient (n,) from the same evaluation."""
        ...

    def share(self, batch: Batch) -> float:
        """w_d: the part of the batch's samples that this rank's group holds; 1 in all over the groups."""
        ...

    def combine(
        self, vector: Vector, scalars: Sequence[float], own: Sequence[float] = ()
    ) -> tuple[Vector, list[float], torch.Tensor]:
        """Sums over the ranks of a vector (n,), in a new one, and of float64 scalars. *Collective*, one reduction.

        Returns:
            Both sums, and what every rank gave as ``own``, shape (ranks, len(own)), rounded to the vector's precision.
        """
        ...

    def release(self, gradient: Vector) -> None:
        """The caller no longer needs a gradient it got here, nor any view of it: its memory may serve the next one."""
        ...

    def subset(self, batch: Batch, size: int, number: int) -> Batch:
        """About ``size`` samples of a batch: the ``number``-th subset of a permuted cycle. *Collective*.

        A cycle has ceil(total / size) subsets, which differ in size by one at most; each sample is in exactly one of
        them. Every cycle is drawn anew, from counters: equal numbers are equal subsets, on any number of ranks.
        """
        ...

    def linearize(self, w: Vector, batch: Batch) -> Linearization:
        """The linearisation at w. *Collective* in its products."""
        ...

    def dot(self, x: Vector, y: Vector) -> float:
        """x^T y. Local when w is replicated, one reduction when it is partitioned."""
        ...

    def inner(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """X Y^T for stacked vectors (k, n) and (l, n): shape (k, l), float64, on the CPU. As ``dot`` otherwise."""
        ...

    def agree(self, *values: float) -> tuple[float, ...]:
        """The same numbers on all ranks, so that a branch taken on them is the same everywhere. *Collective*."""
        ...

    def signs(self, number: int) -> Vector:
        """The ``number``-th random vector (n,) of +1 and -1: the same whole vector however the variables are spread."""
        ...

    def parameter_tensors(self) -> list[tuple[slice, torch.Size]]:
        """Where in w each parameter tensor of the model lies on this rank, and its shape, for layer-wise rules."""
        ...
