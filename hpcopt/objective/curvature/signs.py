"""Vectors of random signs, drawn by counters for the place of a variable in the whole w."""

from __future__ import annotations

import numpy as np
import torch

from hpcopt.objective.protocol import Vector
from hpcopt.random import uniform_keys


def signs(seed: int, number: int, places: torch.Tensor, like: Vector) -> Vector:
    """The ``number``-th vector (n,) of +1 and -1: the same whole vector however the variables are spread.

    Args:
        seed: of the objective.
        number: which vector.
        places: of this rank's variables in the whole, int64 (n,).
        like: a tensor of the precision and on the device that are wanted.
    """
    drawn = uniform_keys(seed, "signs", number, places.numpy()) >> np.uint64(63)
    return torch.from_numpy(drawn.astype(np.int8)).to(like).mul_(2).sub_(1)
