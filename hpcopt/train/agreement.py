"""A proof, for debugging, that all ranks hold the same variables, or have decided alike."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import HpcoptError


def check_agreement(comm: Communicator, vector: Any, iteration: int) -> None:
    """Compare a hash of ``vector``'s bytes over the ranks. *Collective*.

    Raises:
        HpcoptError: on all ranks, when two of them differ.
    """
    data = vector.detach().cpu().contiguous().view(torch.uint8).numpy()
    digest = blake2b(data, digest_size=6).digest()  # 48 bits: exact in a float64
    number = float(int.from_bytes(digest, "big"))
    smallest, largest = comm.reduce_scalars([number, -number], op="min", label="agreement")
    if smallest != -largest:
        raise HpcoptError(
            f"the ranks no longer agree on variables or decisions after iteration {iteration}; a decision was taken "
            "from numbers that differ between ranks. This is a bug in the method or in the model: the latter when it "
            "draws random numbers outside torch's generators",
            collective=True,
        )
