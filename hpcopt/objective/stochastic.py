"""What is random or running inside a model, held still while values on one batch are compared with each other.

Dropout draws the same masks in every evaluation of one batch, seeded by (seed, batch key, rank). Batch normalisation
normalises by the statistics of the batch, and its running averages, which evaluation uses, move once a batch: in the
first gradient of that batch (of its first micro-batch), as they would in a first-order trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from hpcopt.errors import UsageError
from hpcopt.random import key64

_NOTHING_TO_HOLD = nullcontext()
_NORMS = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.modules.instancenorm._InstanceNorm)


@contextmanager
def evaluation(module: torch.nn.Module) -> Iterator[None]:
    """Within this block the module is in evaluation mode; each part of it is left in the mode it was found in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


class StochasticState:
    """Controls the random numbers and running statistics of ``module`` during training evaluations.

    Attributes:
        rank: this rank, whose masks are drawn unless another one's are asked for.
        mixes: whether samples of a piece act on each other's outputs, by batch normalisation.
        draws: whether the model draws random numbers in training; the owner finds out with ``drew`` and says so.
    """

    def __init__(self, module: torch.nn.Module, seed: int, rank: int) -> None:
        self._norms = [m for m in module.modules() if isinstance(m, _NORMS) and m.track_running_stats]
        self.mixes = any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in module.modules())
        self._seed, self.rank = seed, rank
        self._last_updated: tuple[int, int] | None = None
        self.draws = True

    @property
    def by_piece(self) -> bool:
        """Whether a sample's outputs depend on the piece of the batch that it is evaluated in."""
        return self.draws or self.mixes

    def frozen(
        self, key: tuple[int, int], piece: int, device: torch.device, *, may_update: bool, rank: int | None = None
    ) -> AbstractContextManager[None]:
        """One forward pass on a rank's piece of the batch ``key``, with the masks that this piece always has.

        With ``may_update`` the running statistics move, if they have not yet for this batch and stay finite.

        Raises:
            UsageError: a batch normalisation was given a single number of a channel.
        """
        if not (self.draws or self._norms or self.mixes):
            return _NOTHING_TO_HOLD
        return self._held(key, piece, device, may_update, self.rank if rank is None else rank)

    @contextmanager
    def _held(
        self, key: tuple[int, int], piece: int, device: torch.device, may_update: bool, rank: int
    ) -> Iterator[None]:
        update = may_update and bool(self._norms) and key != self._last_updated
        before = [buffer.clone() for norm in self._norms for buffer in norm.buffers()]
        for norm in self._norms:
            norm.track_running_stats = update
        try:
            with self._seeded((*key, piece, rank), device) if self.draws else nullcontext():
                yield
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UsageError(
                "batch normalisation was given a single sample, whose mean and variance tell nothing: this rank's part "
                "of a batch, or the last piece that loss.micro_batch leaves of it, is one sample. Use a larger batch, "
                "fewer ranks, or another micro_batch, or a normalisation such as GroupNorm that does not mix samples."
            ) from error
        finally:
            for norm in self._norms:
                norm.track_running_stats = True
            if update:
                self._last_updated = key
            if not update or not self._finite():
                self._restore(before)

    @property
    def runs(self) -> bool:
        """Whether evaluations depend on running statistics."""
        return bool(self._norms)

    @torch.no_grad()
    def estimate(self, module: torch.nn.Module, pieces: Sequence[torch.Tensor]) -> None:
        """Make the running statistics those of the module as it is, without dropout: the means over ``pieces``.

        A mean of iterates does not have the statistics that these left behind. Normalisations that the user has put in
        evaluation stay as they are, and so do all if some number is not finite.
        """
        moving = [norm for norm in self._norms if norm.training]
        before = [buffer.clone() for norm in self._norms for buffer in norm.buffers()]
        momenta = [norm.momentum for norm in moving]
        try:
            with evaluation(module):
                for norm in moving:
                    norm.train()
                    norm.reset_running_stats()
                    norm.momentum = None
                for piece in pieces:
                    module(piece)
        finally:
            for norm, momentum in zip(moving, momenta, strict=True):
                norm.momentum = momentum
            if not self._finite():
                self._restore(before)

    def drew(self, evaluate: Callable[[], object], device: torch.device) -> bool:
        """Whether ``evaluate`` drew from torch's generators, which are left as they were found."""
        found = [generator.get_state() for generator in _generators(device)]
        try:
            with self.frozen((0, 0), 0, device, may_update=False):
                before = [generator.get_state() for generator in _generators(device)]
                evaluate()
                after = [generator.get_state() for generator in _generators(device)]
        finally:
            for generator, state in zip(_generators(device), found, strict=True):
                generator.set_state(state)
        return not all(map(torch.equal, before, after))

    def _finite(self) -> bool:
        return all(bool(buffer.isfinite().all()) for norm in self._norms for buffer in norm.buffers())

    def _restore(self, before: list[torch.Tensor]) -> None:
        for buffer, kept in zip((b for norm in self._norms for b in norm.buffers()), before, strict=True):
            buffer.copy_(kept)

    @contextmanager
    def _seeded(self, key: tuple[int, ...], device: torch.device) -> Iterator[None]:
        """The batch's own random numbers; torch's generators are left as they were found."""
        found = [generator.get_state() for generator in _generators(device)]
        for generator in _generators(device):
            generator.manual_seed(key64(self._seed, "dropout", *key) >> 1)
        try:
            yield
        finally:
            for generator, state in zip(_generators(device), found, strict=True):
                generator.set_state(state)


def _generators(device: torch.device) -> list[torch.Generator]:
    """The generators that an evaluation on ``device`` may draw from."""
    if device.type != "cuda":
        return [torch.default_generator]
    return [torch.default_generator, torch.cuda.default_generators[device.index or 0]]
