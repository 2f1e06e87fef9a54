"""What is random or running inside a model, held still while values on one batch are compared with each other.

Dropout draws the same masks in every evaluation of one batch, seeded by (seed, batch key, rank). Batch normalisation
normalises by the statistics of the batch, and its running averages, which evaluation uses, move once a batch: in the
first gradient of that batch, as they would in a first-order trainer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hpcopt.random import key64

_NORMS = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.modules.instancenorm._InstanceNorm)


class StochasticState:
    """Controls the random numbers and running statistics of ``module`` during training evaluations."""

    def __init__(self, module: torch.nn.Module, seed: int, rank: int) -> None:
        self._norms = [m for m in module.modules() if isinstance(m, _NORMS) and m.track_running_stats]
        self._seed, self._rank = seed, rank
        self._last_updated: tuple[int, int] | None = None
        dropout = torch.nn.modules.dropout._DropoutNd
        self.deterministic = not self._norms and not any(isinstance(m, dropout) for m in module.modules())

    @contextmanager
    def frozen(self, key: tuple[int, int], device: torch.device, *, may_update: bool) -> Iterator[None]:
        """Evaluate on the batch ``key`` with its masks; running statistics move if they have not for this batch."""
        update = may_update and bool(self._norms) and key != self._last_updated
        for norm in self._norms:
            norm.track_running_stats = update
        generators = [torch.default_generator]
        if device.type == "cuda":
            generators.append(torch.cuda.default_generators[device.index or 0])
        states = [generator.get_state() for generator in generators]
        for generator in generators:
            generator.manual_seed(key64(self._seed, "dropout", *key, self._rank) >> 1)
        try:
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            for norm in self._norms:
                norm.track_running_stats = True
            if update:
                self._last_updated = key
