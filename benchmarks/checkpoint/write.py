"""How fast a checkpoint is written, beside dd with fsync to the same disk, and how much memory that takes.

    mpirun -n 2 python benchmarks/checkpoint/write.py [--output benchmarks/results/checkpoint-write.md]

Saving 200 million float32 parameters (800 MB) and dd of as many bytes take turns, so that whatever else the machine
does meets both; dd runs on rank 0 while the others wait. Both end when the bytes are on the disk. A save also takes a
SHA-256 of the file and a CRC-32 of every array, writes the manifest, publishes, and deletes an old checkpoint.
Memory is the growth of a rank's peak resident set over all saves.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, table, write_report
from hpcopt.checkpoint.folder import FOLDER
from hpcopt.checkpoint.store import CheckpointStore
from hpcopt.checkpoint.verify import verify
from hpcopt.comm.communicator import Communicator

PARAMETERS = 200_000_000
LAYERS = 8
WANTED_RATIO, WANTED_MIB = 0.7, 64.0


class Round(NamedTuple):
    """Seconds of one save and of one dd."""

    save: float
    dd: float


def parameters(count: int) -> dict[str, torch.Tensor]:
    """Weights of ``count`` float32 numbers in all, that no file system can compress."""
    generator = torch.Generator().manual_seed(1)
    return {f"model/fc{layer}/weight": torch.rand(count // LAYERS, generator=generator) for layer in range(LAYERS)}


def seconds_of_save(comm: Communicator, store: CheckpointStore, step: int, content: dict[str, torch.Tensor]) -> float:
    """Time of one save on the slowest rank. *Collective*."""
    comm.barrier()
    start = perf_counter()
    store.save(step, content)
    return comm.reduce_scalars([perf_counter() - start], "max")[0]


def seconds_of_dd(comm: Communicator, source: Path, target: Path) -> float:
    """Time dd takes from a file in memory to the disk, with fsync. *Collective*."""
    seconds = 0.0
    comm.barrier()
    if comm.rank == 0:
        start = perf_counter()
        words = ["dd", f"if={source}", f"of={target}", "bs=8M", "conv=fsync"]
        subprocess.run(words, check=True, stderr=subprocess.DEVNULL)
        seconds = perf_counter() - start
        target.unlink()
    return comm.broadcast_scalars([seconds])[0]


def make_source(nbytes: int) -> Path:
    """A file in memory with random content. Local."""
    path = Path("/dev/shm" if os.path.isdir("/dev/shm") else "/tmp") / f"hpcopt-benchmark-{os.getpid()}"
    block = os.urandom(1 << 24)
    with open(path, "wb") as file:
        for done in range(0, nbytes, len(block)):
            file.write(block[: nbytes - done])
    return path


def measure(comm: Communicator, directory: Path, count: int, rounds: int) -> tuple[list[Round], float]:
    """The rounds, and the memory in MiB that the saves of the hungriest rank took. *Collective*."""
    content = parameters(count)
    store = CheckpointStore(comm, directory / FOLDER)
    store.save(0, {"w": torch.zeros(10)})
    source = make_source(4 * count) if comm.rank == 0 else Path()
    before, found = _peak(), []
    try:
        for number in range(1, rounds + 1):
            seconds = {}
            for which in ("save", "dd") if number % 2 else ("dd", "save"):
                if which == "save":
                    seconds[which] = seconds_of_save(comm, store, number, content)
                else:
                    seconds[which] = seconds_of_dd(comm, source, directory / "dd")
            found.append(Round(**seconds))
    finally:
        if comm.rank == 0:
            source.unlink()
    extra = comm.reduce_scalars([_peak() - before], "max")[0]
    if comm.rank == 0 and verify(store.directory / f"step-{rounds:08d}"):
        raise SystemExit("the checkpoint is damaged")
    return found, extra


def _peak() -> float:
    """Peak resident set of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


def report(count: int, rounds: list[Round], extra: float) -> list[str]:
    """The figures as Markdown."""
    megabytes = 4 * count / 1e6
    rows = [[str(n), *(f"{megabytes / s:,.0f}" for s in each), f"{each.dd / each.save:.2f}"]
            for n, each in enumerate(rounds, 1)]  # fmt: skip
    ratio = median(each.dd / each.save for each in rounds)
    rows.append(["median", *(f"{megabytes / median(s):,.0f}" for s in zip(*rounds, strict=True)), f"{ratio:.2f}"])
    words = f"{count:,} float32 parameters, {megabytes:,.0f} MB; a save goes through file system and fsync as dd does."
    return [
        words,
        "",
        *table(["round", "save, MB/s", "dd, MB/s", "save / dd"], rows),
        "",
        f"- median of save / dd: {ratio:.2f} (wanted: {WANTED_RATIO} or more)",
        f"- memory a save takes beside the parameters: {extra:.1f} MiB a rank at its peak (wanted: {WANTED_MIB:.0f} or "
        "less)",
        f"- load of the machine at the end, over one minute: {os.getloadavg()[0]:.1f} processes",
    ]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=PARAMETERS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--directory", type=Path, default=Path("runs/benchmark-checkpoint"), help="on the disk to test")
    parser.add_argument("--output", help="Markdown file for the figures")
    options = parser.parse_args()
    comm = Communicator()
    directory = options.directory.absolute()
    rounds, extra = measure(comm, directory, options.parameters, options.rounds)
    if comm.rank == 0:
        shutil.rmtree(directory)
        lines = report(options.parameters, rounds, extra)
        print("\n".join(lines))
        if options.output:
            command = f"mpirun -n {comm.size} python benchmarks/checkpoint/write.py{spelled(options, 'directory')}"
            write_report(options.output, "Writing a checkpoint", command, lines)


if __name__ == "__main__":
    main()
