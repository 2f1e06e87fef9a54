"""Which device each rank computes on: its own GPU, one that ranks share because they were told to, or the processor."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.comm.gpu_probe import probe
from hpcopt.comm.nccl import Nccl, load_nccl, refusal, sums_are_right
from hpcopt.errors import UsageError
from hpcopt.kernels.choice import kernels_on


def choose_device(name: str, comm: Communicator, share: bool = False) -> torch.device:
    """The device of this rank, or the CPU. Ranks may differ. *Collective*.

    A rank that sees one GPU takes it, as batch systems show each task its own; one that sees several takes that of its
    position among the ranks of its host.

    Args:
        name: "auto", "cpu" or "cuda".
        comm: the ranks of the run.
        share: several ranks may have one GPU.

    Raises:
        UsageError: on all ranks, when "cuda" is asked for and a rank has none, or when ranks would share a GPU unasked.
    """
    if name == "cpu":
        return torch.device("cpu")
    with comm.together("choosing the device"):
        if name == "cuda" and not torch.cuda.is_available():
            raise UsageError('run.device = "cuda" but torch sees no GPU here; use run.device = "auto" or "cpu".')
    # Ranks without a GPU take part too: those with one number themselves in a collective call.
    neighbours = comm.split_shared()
    index = neighbours.rank % torch.cuda.device_count() if torch.cuda.is_available() else -1
    here = neighbours.allgather_objects("" if index < 0 else gpu_facts(index)["uuid"])
    neighbours.free()
    with comm.together("choosing the device"):
        most = max(Counter(filter(None, here)).values(), default=1)
        if most > 1 and not share:
            raise UsageError(
                f"{len(here)} ranks on {comm.host} would have {len(set(here) - {''})} GPU(s) between them, "
                f"{most} of them the same one. Start one rank a GPU, with run.share_gpu = true let ranks share, or "
                'use run.device = "cpu".'
            )
    if index < 0:
        return torch.device("cpu")
    torch.cuda.set_device(index)
    # Differences of losses and recurrences of residuals need all digits of float32; matrix products have them anyway.
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda", index)


def choose_transport(aware: bool | str, device: torch.device, comm: Communicator) -> str:
    """Tell a communicator how buffers of devices reach MPI; in words. *Collective*, a job of its own for "auto".

    Args:
        aware: what ``parallel.gpu_aware`` says.
        device: of this rank.
        comm: the ranks of the run, without communicators split from it.
    """
    any_device = comm.reduce_scalars([float(device.type != "cpu")], op="max")[0] > 0
    reason = "as asked"
    if aware == "auto":
        aware, reason = probe(comm) if any_device else (False, "no rank has a GPU")
    comm.gpu_aware, comm.pipelined = bool(aware), any_device and not aware
    return f"{'device memory' if aware else 'host memory'}: {reason}"


def choose_sums(asked: bool | str, device: torch.device, comm: Communicator) -> str:
    """Tell a communicator whether NCCL makes its large sums; in words. *Collective*.

    Args:
        asked: what ``parallel.nccl`` says.
        device: of this rank.
        comm: the ranks of the run, without communicators split from it.

    Raises:
        UsageError: on all ranks, when it is asked for and cannot be had.
    """
    if asked is False:
        return "MPI: as asked"
    uuids = comm.allgather_objects(gpu_facts(device.index or 0)["uuid"] if device.type == "cuda" else "")
    if comm.size == 1 or not all(uuids) or len(set(uuids)) < comm.size:
        return refusal(asked, "not every one of several ranks has a GPU of its own")
    module, why = None, ""
    try:
        module = load_nccl()
    except ImportError as error:
        why = str(error)
    why = next(filter(None, comm.allgather_objects(why)), "")
    if not why:
        comm.nccl = Nccl(module, comm.mpi, device)
        right = sums_are_right(comm.nccl, comm.size, comm.rank, device)
        if comm.reduce_scalars([float(right)], op="min")[0] == 1.0:
            return "NCCL: its sums are right"
        comm.nccl, why = None, "sums of NCCL were wrong"
    return refusal(asked, why)


def gpu_facts(index: int) -> dict[str, Any]:
    """Name, UUID (empty where torch does not say) and bytes of memory of a GPU that this process sees."""
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "uuid": str(getattr(properties, "uuid", "")),
        "memory": int(properties.total_memory),
    }


def device_facts(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What the record says of a rank's device: which one it is, and with which kernels it works."""
    facts: dict[str, Any] = {"device": str(device), "kernels": kernels_on(device, dtype).reason}
    return facts if device.type != "cuda" else facts | {"gpu": gpu_facts(device.index or 0)}
