"""What this allocation will do: the facts of all ranks, and a verdict with advice on each."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcopt.analysis.machine import disk_facts, existing_folder, hdf5_facts, process_facts
from hpcopt.analysis.machine_verdicts import judge_disk, judge_hdf5, judge_sweeps, judge_variables, judge_versions
from hpcopt.analysis.verdicts import (
    Finding,
    judge_communication,
    judge_devices,
    judge_job,
    judge_mpi,
    judge_ranks,
    judge_threads,
)
from hpcopt.cluster.allocation import find_allocation
from hpcopt.comm.mpi_library import launchers
from hpcopt.errors import UsageError

SECONDS_TO_SEE = 1.0
"""A file server may show a new file to other hosts a little later."""


@dataclass(frozen=True)
class Report:
    """What was found on all ranks.

    Attributes:
        findings: the lines, in the order to show them.
        facts: everything they rest on, ready for JSON.
    """

    findings: list[Finding]
    facts: dict[str, Any]

    @property
    def healthy(self) -> bool:
        """Whether nothing is red."""
        return all(finding.level != "red" for finding in self.findings)


@dataclass(frozen=True)
class Measured:
    """What only all ranks together can find out.

    Attributes:
        host_memory: seconds of an allreduce by its bytes, the slowest rank's; empty for one rank.
        device_memory: as ``device_messages``; empty where a rank has no GPU.
        blind: hosts that do not see what rank 0 writes into the directory of runs.
    """

    host_memory: Mapping[int, float]
    device_memory: Mapping[str, Any]
    blind: list[str]


def examine(directory: Path = Path("runs")) -> Report | None:
    """Look at this process's machine and, through MPI, at all ranks'. *Collective*.

    Args:
        directory: where runs will be written.

    Returns:
        The report on rank 0, None on the others.
    """
    try:
        from hpcopt.comm.communicator import Communicator
        from hpcopt.comm.mpi_library import load_mpi

        load_mpi()
        comm = Communicator()
    except (ImportError, UsageError) as error:
        return _report(None, str(error), [process_facts() | {"local_rank": 0}], Measured({}, {}, []), directory)
    neighbours = comm.split_shared()
    mine = process_facts() | {"local_rank": neighbours.rank}
    neighbours.free()
    ranks = comm.gather_objects(mine)
    measured = Measured(
        allreduce_times(comm, np.zeros), _device_messages(comm, mine), _blind_hosts(comm, existing_folder(directory))
    )
    if ranks is None:
        return None
    return _report(comm, "", ranks, measured, directory)


def _report(comm: Any, mpi_error: str, ranks: list[dict[str, Any]], measured: Measured, directory: Path) -> Report:
    allocation = find_allocation()
    facts: dict[str, Any] = {
        "mpi": _mpi_facts(comm, mpi_error),
        "launchers": launchers(),
        "job": None if allocation is None else asdict(allocation),
        "ranks": ranks,
        "allreduce_seconds": {str(size): seconds for size, seconds in measured.host_memory.items()},
        "device_memory": dict(measured.device_memory),
        "disk": disk_facts(directory) | {"not_seen_by": measured.blind},
    }
    facts["hdf5"] = hdf5_facts(Path(facts["disk"]["path"]))
    findings = [
        *judge_mpi(facts["mpi"], facts["launchers"]),
        *judge_job(allocation, ranks),
        *judge_ranks(facts["mpi"], ranks),
        *judge_threads(ranks),
        *judge_devices(ranks),
        *judge_sweeps(ranks),
        *judge_communication(measured.host_memory, measured.device_memory),
        *judge_hdf5(facts["hdf5"]),
        *judge_disk(facts["disk"]),
        *judge_versions(ranks),
        *judge_variables(ranks),
    ]
    return Report(findings, facts)


def _mpi_facts(comm: Any, error: str) -> dict[str, Any]:
    if comm is None:
        return {"error": error, "library": "", "size": 1, "launcher": "none", "launch_error": ""}
    from hpcopt.comm.launch import check_launch, detect_launcher
    from hpcopt.comm.mpi_library import library_name

    launch_error = ""
    try:
        check_launch(comm.size, os.environ, library_name())
    except UsageError as refused:
        launch_error = str(refused)
    return {
        "error": "",
        "library": library_name(),
        "size": comm.size,
        "launcher": detect_launcher(os.environ),
        "launch_error": launch_error,
    }


def allreduce_times(comm: Any, zeros: Callable[[int], Any]) -> dict[int, float]:
    """Median seconds of an allreduce of 8 B and of 4 MiB, the slowest rank's. *Collective*.

    Args:
        comm: the ranks; nothing is measured on one.
        zeros: makes a buffer of so many numbers of 8 bytes, in the memory to be measured.
    """
    if comm.size == 1:
        return {}
    found = {}
    for count, repeats in ((1, 50), (1 << 19, 7)):
        buffer = zeros(count)
        seconds = []
        for _ in range(repeats):
            comm.barrier()
            start = time.perf_counter()
            comm.allreduce(buffer)
            seconds.append(time.perf_counter() - start)
        found[8 * count] = comm.reduce_scalars([float(np.median(seconds))], op="max")[0]
    return found


def _device_messages(comm: Any, mine: Mapping[str, Any]) -> dict[str, Any]:
    """What ``device_messages`` finds of each rank's GPU; nothing where a rank has none. *Collective*."""
    count = len(mine["devices"]["names"])
    if comm.size == 1 or not comm.reduce_scalars([float(count)], op="min")[0]:
        return {}
    import torch

    device = torch.device("cuda", mine["local_rank"] % count)
    torch.cuda.set_device(device)
    return device_messages(comm, device)


def device_messages(comm: Any, device: Any) -> dict[str, Any]:
    """Whether MPI reads the memory of ``device``, why, and what an allreduce of it takes either way. *Collective*."""
    import torch

    from hpcopt.comm.gpu_probe import probe

    def zeros(count: int) -> Any:
        """A buffer on the device."""
        return torch.zeros(count, dtype=torch.float64, device=device)

    aware, reason = probe(comm)
    found = {"gpu_aware": aware, "reason": reason, "staged": allreduce_times(comm, zeros), "direct": {}}
    if aware:
        comm.gpu_aware = True
        found["direct"] = allreduce_times(comm, zeros)
        comm.gpu_aware = False
    return found


def _blind_hosts(comm: Any, directory: Path) -> list[str]:
    """The hosts on which a file that rank 0 writes into ``directory`` is not seen. *Collective*; known on rank 0."""
    with ExitStack() as kept:
        name = ""
        if comm.rank == 0:
            # What cannot be written at all is said of the disk.
            with suppress(OSError):
                name = kept.enter_context(tempfile.NamedTemporaryFile(prefix=".hpcopt-doctor-", dir=directory)).name
        name = comm.broadcast_object(name)
        answers = comm.gather_objects((comm.host, not name or _is_seen(Path(name))))
    return sorted({host for host, seen in answers or () if not seen})


def _is_seen(path: Path) -> bool:
    deadline = time.monotonic() + SECONDS_TO_SEE
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(SECONDS_TO_SEE / 10)
    return True
