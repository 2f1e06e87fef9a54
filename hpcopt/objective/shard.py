"""Loss sums and their gradients on the samples of this rank, with no communication.

Shapes: n parameters, b samples of this rank in a batch, C outputs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hpcopt.objective.losses import Loss
from hpcopt.objective.parameters import FlatParameters
from hpcopt.objective.protocol import Batch, Vector
from hpcopt.objective.stochastic import StochasticState


class Shard:
    """A module, a loss and the samples that this rank owns.

    Args:
        module: the network; its parameters become views of the vector under evaluation.
        loss: sums over samples.
        inputs: (samples, ...) in the precision of the parameters, or integers for embeddings.
        targets: (samples,) labels or (samples, C) values.
        parameters: the flat vector over the module's parameters.
        stochastic: holds dropout and running statistics still.
        micro_batch: most samples in one forward pass; None for no limit. Larger batches are accumulated.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        loss: Loss,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        parameters: FlatParameters,
        stochastic: StochasticState,
        micro_batch: int | None = None,
    ) -> None:
        self.module, self.loss = module, loss
        self.inputs, self.targets = inputs, targets
        self.parameters, self.stochastic = parameters, stochastic
        self.micro_batch = micro_batch

    def chunks(self, batch: Batch) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Inputs and targets of this rank's part of ``batch``, at most ``micro_batch`` samples at a time."""
        step = self.micro_batch or max(batch.count, 1)
        for start in range(0, batch.count, step):
            if batch.indices is None:
                yield self.inputs[start : start + step], self.targets[start : start + step]
            else:
                indices = batch.indices[start : start + step]
                yield self.inputs[indices], self.targets[indices]

    def loss_sum(self, w: Vector, batch: Batch) -> float:
        """Sum of the losses of this rank's samples in ``batch`` at w."""
        self._prepare(w)
        total = 0.0
        for piece, (inputs, targets) in enumerate(self.chunks(batch)):
            with torch.no_grad(), self.stochastic.frozen(batch.key, piece, w.device, may_update=False):
                total += float(self.loss.sum(self.module(inputs), targets))
        return total

    def gradient_sum(self, w: Vector, batch: Batch, scale: float, out: Vector) -> float:
        """Write ``scale`` times the gradient of the loss sum into ``out`` (n,) and return the loss sum itself."""
        self._prepare(w)
        total = 0.0
        if not batch.count:
            out.zero_()
        for piece, (inputs, targets) in enumerate(self.chunks(batch)):
            with self.stochastic.frozen(batch.key, piece, w.device, may_update=True):
                loss = self.loss.sum(self.module(inputs), targets)
                gradients = torch.autograd.grad(loss * scale, self.parameters.tensors, materialize_grads=True)
            if piece == 0:
                self.parameters.flatten(gradients, out)
            else:
                out.add_(torch.cat([g.reshape(-1) for g in gradients]))
            total += float(loss.detach())
        return total

    def backward_sum(self, w: Vector, batch: Batch, scale: float) -> float:
        """Backward pass of ``scale`` times the loss sum, for hooks on the module's tensors; returns the loss sum.

        The batch must fit in one pass (no ``micro_batch`` below it).
        """
        self._prepare(w)
        for inputs, targets in self.chunks(batch):
            with self.stochastic.frozen(batch.key, 0, w.device, may_update=True):
                loss = self.loss.sum(self.module(inputs), targets)
                (loss * scale).backward()
            return float(loss.detach())
        return 0.0

    def _prepare(self, w: Vector) -> None:
        self.parameters.bind(w)
        if not self.module.training:
            self.module.train()
