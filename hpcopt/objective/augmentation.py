"""Images that are shifted and mirrored at random while a model is trained on them, drawn by counters.

What a sample gets depends on (seed, epoch, its position in the whole set) and on nothing else. So it is the same on any
number of ranks and in a run that was resumed, and all evaluations of one batch, of its subsets and pieces see the same
images; the next epoch sees others.

Shapes: b images of C channels, H rows and W columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch.nn import functional

from hpcopt.random import uniform_keys

Augment: TypeAlias = "Callable[[torch.Tensor, int, slice | torch.Tensor], torch.Tensor]"
"""From samples (b, ...), the epoch, and which of this rank's samples they are, to samples of the same shape."""

MARGIN = 4
"""Pixels by which an image is padded on every side (He et al. 2016, arXiv 1512.03385, section 4.2)."""

_SHIFTS = 2 * MARGIN + 1


class CropAndFlip:
    """Pads images with zeros, crops them to their size at a random place, and mirrors each with probability 1/2.

    Args:
        seed: the run's seed.
        start: position in the whole set of this rank's first sample.
        count: samples of this rank.
        device: where the images lie.
    """

    def __init__(self, seed: int, start: int, count: int, device: torch.device) -> None:
        self._seed, self._device = seed, device
        self._positions = np.arange(start, start + count)
        self._epoch: int | None = None
        self._drawn = torch.empty(3, 0, dtype=torch.int64)

    def __call__(self, images: torch.Tensor, epoch: int, chosen: slice | torch.Tensor) -> torch.Tensor:
        """New images for those (b, C, H, W) or (b, H, W) that are ``chosen`` of this rank's samples."""
        height, width = images.shape[-2:]
        top, left, mirrored = self.draws(epoch)[:, chosen].unsqueeze(-1)
        down, across = (torch.arange(count, device=self._device) for count in (height, width))
        columns = left + torch.where(mirrored == 1, width - 1 - across, across)
        places = ((top + down) * (width + 2 * MARGIN)).unsqueeze(-1) + columns.unsqueeze(1)
        padded = functional.pad(images, [MARGIN] * 4).flatten(-2)
        places = places.flatten(1).view(len(images), *(1,) * (images.ndim - 3), height * width)
        return padded.gather(-1, places.expand(*images.shape[:-2], -1)).view(images.shape)

    def draws(self, epoch: int) -> torch.Tensor:
        """For each of this rank's samples the crop's first row and column, and 1 where it is mirrored: (3, count)."""
        if epoch != self._epoch:
            keys = uniform_keys(self._seed, "augment", epoch, self._positions) % np.uint64(2 * _SHIFTS**2)
            left, rest = np.divmod(keys.astype(np.int64), 2 * _SHIFTS)
            self._drawn = torch.from_numpy(np.stack([rest // 2, left, rest % 2])).to(self._device)
            self._epoch = epoch
        return self._drawn
