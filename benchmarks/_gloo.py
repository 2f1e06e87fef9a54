"""The ranks of an MPI job as a process group of torch over gloo."""

from __future__ import annotations

import os
import socket

import torch
from mpi4py import MPI


def start_gloo() -> None:
    """Make torch.distributed know the ranks of MPI's world, all on this host. *Collective*."""
    world = MPI.COMM_WORLD
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(world.bcast(port))}
    torch.distributed.init_process_group("gloo", rank=world.rank, world_size=world.size)
