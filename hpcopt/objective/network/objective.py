"""f(w) of a fully connected network cut over the ranks: w, features and outputs are cut, no rank holds all of any.

Letters are those of Wang et al. 2018 (arXiv:1802.00130). Shapes: n numbers of w on this rank, N instances, b of them in
a batch (the same on all ranks), u_1 features and v_L outputs of this rank, C outputs of the network, R ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.kernels.choice import kernels_on
from hpcopt.objective import vectors
from hpcopt.objective.curvature.signs import signs
from hpcopt.objective.fit import check_options
from hpcopt.objective.local import Pace
from hpcopt.objective.network.data import (
    Array,
    check_alike,
    check_names,
    check_same,
    is_labels,
    kind_of,
    make_layout,
    own_inputs,
    own_targets,
)
from hpcopt.objective.network.explicit import ExplicitLinearization, bytes_each
from hpcopt.objective.network.first_weights import initial_blocks
from hpcopt.objective.network.implicit import ImplicitLinearization
from hpcopt.objective.network.jacobian import KINDS, faster, measure
from hpcopt.objective.network.losses import SPLIT_LOSSES
from hpcopt.objective.network.memory import KEPT_BYTES
from hpcopt.objective.network.model import PartitionedModel
from hpcopt.objective.network.passes import Kept
from hpcopt.objective.network.pipeline import make_network
from hpcopt.objective.network.variables import CutVariables
from hpcopt.objective.problem import Samples, Sums
from hpcopt.objective.protocol import Batch, Vector, Work
from hpcopt.objective.subsets import Subsets

PIECE_BYTES = 64 * 2**20
"""Size to which one array of a sweep may grow before the instances go in several pieces."""


class NetworkObjective(CutVariables):
    """The mean loss of a fully connected network with linear outputs, plus weight decay. *Collective*.

    All ranks see the same instances. On a grid each holds its block of every layer, its feature columns and its target
    columns; with the paper's mapping each holds a block of one layer, those of the first one the features and those of
    the last one the targets.

    Args:
        sizes: n_0 ... n_L: features, neurons of each hidden layer, outputs.
        activation: of the hidden layers: "sigmoid", "tanh" or "relu".
        loss: "squared" (|z - y|^2 / 2) or "cross_entropy" (of the softmax over all outputs).
        inputs: this rank's feature columns of all instances, (N, u_1), (N, 0) where it has none; their precision is
            that of w.
        targets: labels (N,), or this rank's target columns (N, v_L), (N, 0) where it has none.
        comm: all ranks; of a grid row by row.
        grid: [rows, columns]; None for the squarest that fits. ``GridLayout(sizes, ProcessGrid(*grid))`` says which
            columns a rank must be given.
        mapping: "grid", or "paper": every layer on ranks of its own (Wang et al. 2018).
        split: with "paper", the number of groups of the features and of the neurons of every layer, [P_0 ... P_L], on
            sum P_{m-1} P_m ranks; None for the one whose largest block is smallest. ``DisjointLayout(sizes, split)``
            says which columns a rank must be given.
        pipeline: with "paper", blocks in which the instances of a sweep go through the layers; 4 L by default.
        weight_decay: coefficient of |w|^2 / 2, biases included.
        seed: of the first weights; they do not depend on the grid.
        init: "he", "xavier" or "sparse" (15 incoming weights a unit).
        micro_batch: most instances in one sweep; larger batches are accumulated. By default as many as keep every array
            of a sweep below 64 MiB.
        jacobian: "explicit" keeps the factors of the Jacobian for products, "implicit" only activations; "auto"
            measures both and takes the faster one for a step of Newton, and only what fits in ``memory_limit``.
        factors: in what the factors of hidden layers are kept: "full", the precision of w, or "bfloat16", rounded to
            8 bits in half or a quarter of the memory; everything else is in the precision of w.
        memory_limit: most bytes on a rank for what a linearisation keeps.
        instances: most in a linearisation, where that is known: "auto" then knows before the first one what fits.

    Attributes:
        partition: who holds which block of every layer.
        network: the sweeps; also for the linearisations.
        split_loss: the loss on split outputs.
        jacobian: which of the two it is.
        stored: the type of the factors.
        options: what must be the same on all ranks.
        subsets: draws the instances of linearisations.
        pace: when a rank must end its part of a phase on its own block; None lets it finish.
        inputs, targets: this rank's (N, u_1) and (N, v_L).

    Raises:
        UsageError: on all ranks, when the grid does not fit ranks or network, the data does not fit a rank's block, an
            option breaks its rule or is not the same on all ranks.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str,
        loss: str,
        inputs: Array,
        targets: Array,
        comm: Communicator,
        grid: Sequence[int] | None = None,
        *,
        mapping: str = "grid",
        split: Sequence[int] | None = None,
        pipeline: int | None = None,
        weight_decay: float = 0.0,
        seed: int = 0,
        init: str = "he",
        micro_batch: int | None = None,
        jacobian: str = "explicit",
        factors: str = "full",
        memory_limit: int = KEPT_BYTES,
        instances: int | None = None,
    ) -> None:
        self.comm, self.weight_decay = comm, weight_decay
        with comm.together("laying out the network"):
            check_names(activation=activation, loss=loss, init=init, jacobian=jacobian, factors=factors)
            counts = {"micro_batch": micro_batch, "pipeline": pipeline, "instances": instances}
            check_options(weight_decay, memory_limit=memory_limit, **counts)
            self.partition = make_layout(sizes, grid, comm.size, mapping, split)
            self.inputs = own_inputs(inputs, self.partition, comm.rank)
            self.targets = own_targets(targets, self.partition, comm.rank, self.inputs)
        same: dict[str, object] = {"sizes": list(self.partition.sizes), **self.partition.described, "loss": loss}
        same |= {"activation": activation, "weight_decay": float(weight_decay), "seed": seed, "init": init}
        same |= {"micro_batch": micro_batch, "jacobian": jacobian, "memory_limit": memory_limit, "pipeline": pipeline}
        self.options = same | {"instances": instances, "factors": factors}
        self.classification = is_labels(targets)
        check_same(comm, self.options | {"targets": kind_of(targets)})
        self.size, self.samples = self.partition.size(comm.rank), len(self.inputs)
        self.outputs = self.partition.sizes[-1]
        kernels = kernels_on(self.inputs.device, self.inputs.dtype).factors
        self.network = make_network(self.partition, activation, comm, pipeline, kernels)
        check_alike(comm, self.network.output_groups, loss, self.inputs, self.targets)
        self.split_loss = SPLIT_LOSSES[loss](self.network.output_groups)
        self.micro_batch = micro_batch or self._instances_of_a_piece()
        self._seed, self._init, self._limit = seed, init, memory_limit
        self.subsets, self.work = Subsets(seed, self.inputs.device), Work()
        self.stored = torch.bfloat16 if factors == "bfloat16" else self.inputs.dtype
        self._chosen_here = jacobian == "auto"
        self.use_jacobian(self._faster(instances or 1) if self._chosen_here else jacobian)
        self.flag, self.flags_seen = 0.0, 0.0
        self.pace: Pace | None = None
        self.model = PartitionedModel(self.partition, comm.rank, self.initial_vector())

    @property
    def layout(self) -> dict[str, Any]:
        """How features and variables are spread over the ranks, for the record."""
        sizes = [self.partition.size(rank) for rank in range(self.comm.size)]
        return {"layout": "variables", **self.partition.described, "block_sizes": sizes}

    @property
    def parameters(self) -> int:
        """Weights and biases of the whole network."""
        return self.partition.parameters

    @property
    def full_batch(self) -> Batch:
        """All instances."""
        return Batch(None, self.samples, self.samples)

    @property
    def blocks(self) -> Sequence[int]:
        """Every rank holds variables of its own."""
        return range(self.comm.size)

    def initial_vector(self) -> Vector:
        """This rank's numbers (n,) of the network as it starts; the whole is the same on any grid."""
        return initial_blocks(self.partition, self.comm.rank, self._init, self._seed, self.inputs)

    def value(self, w: Vector, batch: Batch) -> float:
        """f(w) on the batch. *Collective*: one reduction a layer and piece, and one of scalars."""
        layers, loss = self.network.views(w), 0.0
        for inputs, targets in self.pieces(batch):
            loss += self.split_loss.sum(self.network.forward(layers, inputs), targets)
        self.work.values += batch.total / self.samples
        return self._total(loss, w, batch)

    def value_and_gradient(self, w: Vector, batch: Batch) -> tuple[float, Vector]:
        """f(w) and this rank's numbers (n,) of its gradient, a new vector. *Collective*.

        On a grid one reduction a layer and piece forward, one a layer but the first backward, and one of scalars.
        """
        layers, loss, gradient = self.network.views(w), 0.0, torch.zeros_like(w)
        into = self.network.views(gradient)
        for inputs, targets in self.pieces(batch):
            kept: Kept = {}
            outputs = self.network.forward(layers, inputs, kept)
            part, errors = self.split_loss.sum_and_errors(outputs, targets)
            loss += part
            self.network.backward(layers, kept, errors.div_(batch.total), into)
        self.work.gradients += batch.total / self.samples
        if self.weight_decay:
            gradient.add_(w, alpha=self.weight_decay)
        return self._total(loss, w, batch), gradient

    def predict(self, w: Vector, batch: Batch) -> torch.Tensor:
        """The outputs (b, C) of the network on the batch, on every rank. *Collective*."""
        layers = self.network.views(w)
        parts = [self.network.forward(layers, inputs) for inputs, _ in self.pieces(batch)]
        own = torch.cat(parts) if parts else self.targets[:0]
        return self.network.gather_outputs(own)

    def shards(self) -> tuple[int, int]:
        """All samples are every rank's. Local."""
        return 0, self.samples

    def evaluate(self, w: Vector, test: Samples | None) -> tuple[Sums, Sums]:
        """Figures at w over the training set and over the test set, zeros without one. *Collective*.

        Args:
            w: this rank's numbers (n,).
            test: this rank's feature columns of all test samples, and their labels or its target columns.
        """
        self.model.bind(w)
        own = (self.inputs, self.targets)
        parts = [own] if test is None else [own, (test[0], self._columns(test))]
        sums = [self._sums(w, *part) for part in parts]
        reduced = self.comm.reduce_scalars([figure for part in sums for figure in part], label="evaluation")
        return Sums(*reduced[:3]), Sums(*reduced[3:])

    def estimate_statistics(self, w: Vector) -> None:
        """Nothing: no layer normalises over samples."""

    def moments(self, targets: torch.Tensor) -> tuple[float, float]:
        """Number of a set's samples, and the sum of squared distances of targets from their mean. *Collective*."""
        centred = 0.0
        if not self.classification and self.network.is_first:
            values = targets.to(torch.float64)
            centred = float((values - values.mean(0)).square().sum())
        return float(len(targets)), self.comm.reduce_scalars([centred], label="evaluation")[0]

    def subset(self, batch: Batch, size: int, number: int) -> Batch:
        """The ``number``-th subset of about ``size`` samples of the batch, the same on all ranks."""
        return self.subsets.take(batch, size, number, 0)

    def signs(self, number: int) -> Vector:
        """This rank's numbers (n,) of the ``number``-th vector of random signs."""
        return signs(self._seed, number, self.model.places(), self.inputs)

    def linearize(self, w: Vector, batch: Batch) -> ExplicitLinearization | ImplicitLinearization:
        """The network linearised at w on the batch. *Collective*, as are its products."""
        return self.linearize_by(self.kind_for(batch.count), w, batch)

    def linearize_by(self, kind: str, w: Vector, batch: Batch) -> ExplicitLinearization | ImplicitLinearization:
        """As ``linearize``, in one of the two ways."""
        return KINDS[kind](self, w, batch, self._limit)

    def kind_for(self, instances: int) -> str:
        """The way in which so many are linearised: by sweeps where the choice is free and factors would not fit."""
        return "implicit" if self._chosen_here and not self._factors_fit(instances) else self.jacobian

    def use_jacobian(self, kind: str) -> None:
        """Make products in one of the two ways, the same on all ranks; the count of work begins anew."""
        self.jacobian = kind
        self.work = Work(curvature_cost=self._product_cost())

    def count_products(self, batch: Batch, products: float = 1.0) -> None:
        """Count curvature products on ``batch``."""
        self.work.curvature_products += products * batch.total / self.samples

    def rows(self, batch: Batch, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's inputs and targets of some instances of the batch."""
        chosen = rows if batch.indices is None else batch.indices[rows]
        return self.inputs[chosen], self.targets[chosen]

    def pieces(self, batch: Batch) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This rank's inputs and targets of the batch, at most ``micro_batch`` instances at a time."""
        for first in range(0, batch.count, self.micro_batch):
            yield self.rows(batch, slice(first, min(first + self.micro_batch, batch.count)))

    def free(self) -> None:
        """Give back the communicators of the sweeps. *Collective*."""
        self.network.free()

    def _instances_of_a_piece(self) -> int:
        """As many as keep every array of a sweep below ``PIECE_BYTES``."""
        widest = max(self.partition.most(layer) for layer in range(len(self.partition.sizes)))
        return max(1, PIECE_BYTES // (widest * self.inputs.element_size()))

    def _faster(self, instances: int) -> str:
        """What makes products sooner here, for linearisations on so many. *Collective*."""
        return faster(measure(self, self._limit)) if self._factors_fit(instances) else "implicit"

    def _factors_fit(self, instances: int) -> bool:
        """Whether those of so many can be kept; made anew in every product they cost more than sweeps."""
        return instances * bytes_each(self.partition, self.inputs.element_size()) <= self._limit

    def _product_cost(self) -> float:
        """Operations of a Gauss-Newton product over those of a gradient, both for one instance of the whole network."""
        sizes, weights = self.partition.sizes, sum(a * b for a, b in pairwise(self.partition.sizes))
        gradient, first = 6 * weights - 2 * sizes[0] * sizes[1], sizes[0] * sizes[1]
        if self.jacobian == "explicit":
            return 4 * (weights + self.outputs * sum(sizes[1:-1])) / gradient
        return (8 * weights - 4 * first) / gradient

    def _columns(self, samples: Samples) -> torch.Tensor:
        return own_targets(samples[1], self.partition, self.comm.rank, samples[0])

    def _sums(self, w: Vector, inputs: torch.Tensor, targets: torch.Tensor) -> Sums:
        """This rank's part of the figures of some samples. *Collective*."""
        layers, loss, correct, error = self.network.views(w), 0.0, 0.0, 0.0
        mine = self.network.is_first
        for x, y in zip(inputs.split(self.micro_batch), targets.split(self.micro_batch), strict=True):
            outputs = self.network.forward(layers, x)
            part = self.split_loss.sum(outputs, y)
            loss += part if mine else 0.0
            if self.classification:
                scores, labels = self.network.gather_outputs(outputs), self.network.gather_outputs(y)
                correct += float((scores.argmax(1) == labels.argmax(1)).sum()) if self.comm.rank == 0 else 0.0
            elif mine:
                error += float((outputs - y).square().sum(dtype=torch.float64))
        return Sums(loss, correct, error)

    def _total(self, loss: float, w: Vector, batch: Batch) -> float:
        """Mean loss and weight decay of all ranks, from this rank's part of the sum. *Collective*, one reduction."""
        own = loss / max(batch.total, 1) if self.network.is_first else 0.0
        if self.weight_decay:
            own += 0.5 * self.weight_decay * vectors.dot(w, w)
        total, flags = self.comm.reduce_scalars([own, self.flag], label="value")
        self.flags_seen += flags
        return total
