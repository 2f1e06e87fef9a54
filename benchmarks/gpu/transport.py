"""How a reduction of a device's memory reaches MPI: as a whole through the host, in chunks, or directly.

    mpirun -n 2 python benchmarks/gpu/transport.py [--device cpu] [--aware]

All ranks share the devices that they see. Prints a JSON list of rows: way, bytes, seconds of one call on the slowest
rank (median of several), and whether the results were right. ``run.py`` starts it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.gpu.kernels import wait
from hpcopt.comm.communicator import Communicator

BYTES = (1 << 16, 1 << 22, 1 << 25, 1 << 28)
WAYS = {"whole, through the host": (False, False), "chunks, through the host": (False, True), "directly": (True, False)}
"""Way -> (gpu_aware, pipelined)."""


def measure(comm: Communicator, device: torch.device, way: str, nbytes: int, repeats: int = 7) -> dict[str, Any]:
    """One row. *Collective*."""
    comm.gpu_aware, comm.pipelined = WAYS[way]
    tensor = torch.ones(nbytes // 4, device=device)
    times = []
    for _ in range(repeats + 1):
        tensor.fill_(comm.rank + 1.0)
        wait(device)
        comm.barrier()
        start = perf_counter()
        comm.allreduce(tensor)
        wait(device)
        times.append(comm.reduce_scalars([perf_counter() - start], "max")[0])
    right = bool((tensor == comm.size * (comm.size + 1) / 2).all())
    right = comm.reduce_scalars([float(right)], "min")[0] == 1.0
    return {"way": way, "bytes": nbytes, "seconds": median(times[1:]), "right": right}


def main() -> int:
    """Measure and print. *Collective*."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--aware", action="store_true", help="also directly; only for an MPI that can")
    parser.add_argument("--most", type=int, default=BYTES[-1], help="bytes of the longest message")
    args = parser.parse_args()
    comm, device = Communicator(), torch.device("cpu")
    if args.device == "cuda":
        device = torch.device("cuda", comm.rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    ways = [way for way, (aware, _) in WAYS.items() if args.aware or not aware]
    rows = [measure(comm, device, way, nbytes) for nbytes in BYTES if nbytes <= args.most for way in ways]
    if comm.rank == 0:
        print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
