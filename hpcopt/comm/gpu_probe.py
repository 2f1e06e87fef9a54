"""Whether this MPI reads and writes the memory of devices: found out by a job of its own, as a wrong guess crashes.

Build flags and queries say too much or too little about it. The job makes every kind of call that hpcopt makes, with a
length that goes eagerly and one that needs a rendezvous, and compares the results. ``python -m hpcopt.comm.gpu_probe``
is one of its ranks.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.comm.mpi_library import fits, launchers, library_name, vendor

SIZES = {"eager": 256, "rendezvous": 1 << 20}
"""Numbers of float32 in a message: 1 KiB and 4 MiB, on either side of what libraries send eagerly."""

SECONDS = 120.0
"""After these the job counts as one that hangs."""

LAUNCHED: tuple[str, ...] = (
    *("OMPI_COMM_WORLD_", "OMPI_APP", "OMPI_FILE", "OMPI_FIRST", "OMPI_UNIVERSE", "OMPI_COMMAND", "OMPI_ARGV"),
    *("PMIX_", "PMI_", "PMI2_", "MV2_COMM_WORLD_", "HYDI_", "MPIEXEC_", "PRTE_LAUNCHED", "SLURM_"),
)
"""Variables that tell a process which rank of which job it is."""

WRONG = 3


def probe(comm: Communicator, command: Sequence[str] | None = None, seconds: float = SECONDS) -> tuple[bool, str]:
    """Whether device memory may be given to MPI, and why. *Collective*: rank 0 starts the job and tells the others.

    Args:
        comm: the ranks that want to know.
        command: of the job; two ranks on this host by default.
        seconds: after which it hangs.
    """
    found = _ask(command or _command(), seconds) if comm.rank == 0 else None
    verdict: tuple[bool, str] = comm.broadcast_object(found)
    return verdict


def wrong_results(comm: Communicator, new: Callable[[torch.Tensor], torch.Tensor]) -> list[str]:
    """The calls whose results are wrong on any rank, such as "allreduce rendezvous". *Collective*.

    Args:
        comm: gives buffers to MPI as they are.
        new: puts a tensor of the host where MPI is to find it.
    """
    wrong = []
    for name, size in SIZES.items():
        own, size = torch.arange(size, dtype=torch.float32) % 97 + comm.rank, size - size % comm.size
        own, each = own[:size], [size // comm.size] * comm.size
        total = comm.size * (torch.arange(size) % 97) + comm.size * (comm.size - 1) // 2
        first, mine = own - comm.rank, slice(comm.rank * each[0], (comm.rank + 1) * each[0])
        parts = torch.cat([first[: each[0]] + rank for rank in range(comm.size)])
        results = {
            "allreduce": (comm.allreduce(new(own)), total),
            "iallreduce": (comm.iallreduce(new(own)).wait(), total),
            "bcast": (comm.bcast(new(own)), first),
            "ibcast": (comm.ibcast(new(own)).wait(), first),
            "reduce_scatter": (comm.reduce_scatter(new(own), each), total[mine]),
            "allgatherv": (comm.allgatherv(new(own[: each[0]]), each), parts),
            "iallgatherv": (comm.iallgatherv(new(own[: each[0]]), new(own), each).wait(), parts),
        }
        for call, (found, expected) in results.items():
            differs = float(not torch.equal(found.cpu().double(), expected.double()))
            if comm.reduce_scalars([differs], op="max")[0]:
                wrong.append(f"{call} {name}")
    return wrong


def _command() -> list[str]:
    """Mpirun of this MPI library with two ranks; empty where there is none."""
    library = vendor(library_name())
    paths = [each["path"] for each in launchers() if fits(vendor(each["version"]), library)]
    return [paths[0], "-n", "2", sys.executable, "-m", "hpcopt.comm.gpu_probe"] if paths else []


def _ask(command: Sequence[str], seconds: float) -> tuple[bool, str]:
    if not command:
        return False, "not asked: no mpirun of this MPI library was found"
    try:
        done = subprocess.run(
            command, env=_environment(os.environ), capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"a job with device buffers hung for {seconds:g} s"
    except OSError as error:
        return False, f"not asked: {error}"
    if done.returncode == 0:
        return True, "a job with device buffers had the right results"
    if done.returncode == WRONG:
        return False, f"a job with device buffers had wrong results: {done.stdout.strip()[:200]}"
    said = next((line for line in reversed(done.stderr.splitlines()) if any(map(str.isalpha, line))), "nothing")
    return False, f"a job with device buffers ended with status {done.returncode} and said {said[:200]}"


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """That of a process that no launcher started."""
    return {name: value for name, value in environ.items() if not name.startswith(LAUNCHED)}


def main(arguments: Sequence[str]) -> int:
    """One rank of the job; ``--cpu`` makes the same calls with host memory. *Collective*."""
    comm, device = Communicator(gpu_aware=True), torch.device("cpu")
    if "--cpu" not in arguments:
        device = torch.device("cuda", comm.rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    wrong = wrong_results(comm, lambda tensor: tensor.to(device, copy=True))
    if wrong and comm.rank == 0:
        print(", ".join(wrong))
    return WRONG if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
