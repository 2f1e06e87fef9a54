"""What this allocation will do: the facts of all ranks, and a verdict with advice on each."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hpcopt.analysis.machine import disk_facts, hdf5_facts, process_facts
from hpcopt.comm.mpi_library import fits, launchers, vendor
from hpcopt.errors import UsageError

Level = Literal["green", "yellow", "red"]

REQUIRED = {"torch": (2, 4), "numpy": (1, 26), "mpi4py": (4, 1), "h5py": (3, 10)}
"""The oldest versions that work, as the package's metadata has them."""

SLOW_WRITES = 30e6
LITTLE_SPACE = 1 << 30
SLOW_ALLREDUCE = 1e-3


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: green is fine, yellow works but costs something, red will not work."""

    topic: str
    level: Level
    text: str
    advice: str = ""


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
        return _report(None, str(error), [process_facts()], None, directory)
    ranks = comm.gather_objects(process_facts())
    times = _allreduce_times(comm)
    if ranks is None:
        return None
    return _report(comm, "", ranks, times, directory)


def _report(
    comm: Any, mpi_error: str, ranks: list[dict[str, Any]], times: Mapping[int, float] | None, directory: Path
) -> Report:
    facts: dict[str, Any] = {
        "mpi": _mpi_facts(comm, mpi_error),
        "launchers": launchers(),
        "ranks": ranks,
        "allreduce_seconds": {str(size): seconds for size, seconds in (times or {}).items()},
        "disk": disk_facts(directory),
    }
    facts["hdf5"] = hdf5_facts(Path(facts["disk"]["path"]))
    findings = [
        *judge_mpi(facts["mpi"], facts["launchers"]),
        *judge_ranks(facts["mpi"], ranks),
        *judge_threads(ranks),
        *judge_devices(ranks),
        *judge_communication(times),
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


def _allreduce_times(comm: Any) -> dict[int, float]:
    """Median seconds of an allreduce of 8 B and of 4 MiB, the slowest rank's. *Collective*."""
    if comm.size == 1:
        return {}
    found = {}
    for count, repeats in ((1, 50), (1 << 19, 7)):
        buffer = np.zeros(count)
        seconds = []
        for _ in range(repeats):
            comm.barrier()
            start = time.perf_counter()
            comm.allreduce(buffer)
            seconds.append(time.perf_counter() - start)
        found[8 * count] = comm.reduce_scalars([float(np.median(seconds))], op="max")[0]
    return found


def judge_mpi(mpi: Mapping[str, Any], found: Sequence[Mapping[str, str]]) -> list[Finding]:
    """The library, and whether the mpirun at hand belongs to it."""
    if mpi["error"]:
        return [Finding("MPI", "red", "no MPI library", mpi["error"])]
    lines = [Finding("MPI", "green", mpi["library"].split(", package")[0])]
    if not found:
        advice = "Start with srun, or put the mpirun that belongs to this MPI on PATH."
        return [*lines, Finding("mpirun", "yellow", "none on PATH nor beside Python", advice)]
    library = vendor(mpi["library"])
    for place, launcher in enumerate(found):
        maker = vendor(launcher["version"])
        text = f"{launcher['path']}: {launcher['version']}"
        if fits(maker, library):
            lines.append(Finding("mpirun", "green", text))
        elif not maker or not library:
            lines.append(Finding("mpirun", "yellow", text, "It is not known whether it fits the MPI library above."))
        else:
            other = (
                "" if place == 0 and len(found) == 1 else " The other one fits." if _one_fits(found, library) else ""
            )
            advice = (
                f"This starts {maker}, but Python loads {library}: each process would be alone.{other} Call the mpirun "
                f"of {library} by its full path, or put its folder first in PATH."
            )
            lines.append(Finding("mpirun", "yellow" if _one_fits(found, library) else "red", text, advice))
    return lines


def _one_fits(found: Sequence[Mapping[str, str]], library: str) -> bool:
    return any(fits(vendor(launcher["version"]), library) for launcher in found)


def judge_ranks(mpi: Mapping[str, Any], ranks: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """How many ranks on which hosts, and whether they found each other."""
    if mpi["launch_error"]:
        return [Finding("ranks", "red", "every process is alone", mpi["launch_error"])]
    hosts = Counter(rank["host"] for rank in ranks)
    launcher = "started without a launcher" if mpi["launcher"] == "none" else f"started by {mpi['launcher']}"
    each = sorted(set(hosts.values()))
    where = f"{_count(len(hosts), 'host')} ({', '.join(list(hosts)[:4])}{', ...' if len(hosts) > 4 else ''})"
    text = f"{_count(len(ranks), 'rank')} on {where}, {launcher}"
    if len(ranks) == 1:
        advice = "More with mpirun -n 4 hpcopt ..., or srun." if mpi["launcher"] == "none" else ""
        return [Finding("ranks", "green", text, advice)]
    if len(each) > 1:
        advice = "Hosts with more ranks are slower, and all wait for them: use the same number on each host."
        return [Finding("ranks", "yellow", f"{text}, {each[0]} to {each[-1]} a host", advice)]
    return [Finding("ranks", "green", text)]


def judge_threads(ranks: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Cores and threads of the ranks, worst host first."""
    from hpcopt.comm.launch import threads_per_rank

    by_host: dict[str, list[Mapping[str, Any]]] = {}
    for rank in ranks:
        by_host.setdefault(rank["host"], []).append(rank)
    masks = {host: [frozenset(rank["cores"]) for rank in group] for host, group in by_host.items()}
    shares = {host: min(threads_per_rank(mask, me) for me in range(len(mask))) for host, mask in masks.items()}
    host = min(shares, key=lambda name: shares[name])
    cores, share, here = frozenset().union(*masks[host]), shares[host], len(masks[host])
    set_by_user = sorted(
        {rank["variables"]["OMP_NUM_THREADS"] for rank in ranks if "OMP_NUM_THREADS" in rank["variables"]}
    )
    text = f"{_count(share, 'thread')} a rank ({here} on {_count(len(cores), 'core')} of {host})"
    if here > len(cores):
        advice = "More ranks than cores: they take turns, and every collective waits for it. Start fewer ranks."
        return [Finding("threads", "yellow", text, advice)]
    if set_by_user:
        asked = set_by_user[-1]
        text = f"OMP_NUM_THREADS={asked} a rank, {here} on {_count(len(cores), 'core')} of {host}"
        if asked.isdigit() and int(asked) * here > len(cores):
            advice = f"More threads than cores: unset OMP_NUM_THREADS or set it to {share}."
            return [Finding("threads", "yellow", text, advice)]
        return [Finding("threads", "green", text)]
    total = by_host[host][0]["cores_of_host"]
    if 2 * len(cores) <= total and here > 1:
        advice = (
            f"{total - len(cores)} cores of the host are not used. If they are yours, give each rank more of them: "
            "mpirun --bind-to none, or srun --cpus-per-task."
        )
        return [Finding("threads", "yellow", text, advice)]
    return [Finding("threads", "green", text)]


def judge_devices(ranks: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Accelerators that torch sees."""
    broken = [rank["devices"]["error"] for rank in ranks if rank["devices"]["error"]]
    if broken:
        advice = "Install torch into this environment (pip install torch), or load the module that brings it."
        return [Finding("devices", "red", f"torch cannot be imported: {broken[0]}", advice)]
    built_for = ranks[0]["devices"]["built_for"]
    counts = {rank["host"]: len(rank["devices"]["names"]) for rank in ranks}
    if not any(counts.values()):
        if built_for and ranks[0]["variables"].get("CUDA_VISIBLE_DEVICES") == "":
            return [
                Finding("devices", "yellow", "CPU; the devices are hidden", "Unset CUDA_VISIBLE_DEVICES to use them.")
            ]
        return [
            Finding("devices", "green", f"CPU ({ranks[0]['cpu']})" + (f", torch for {built_for}" if built_for else ""))
        ]
    names = Counter(name for rank in {r["host"]: r for r in ranks}.values() for name in rank["devices"]["names"])
    text = ", ".join(f"{count} x {name}" for name, count in names.items()) + f", torch for {built_for}"
    if not all(counts.values()):
        without = ", ".join(host for host, count in counts.items() if not count)
        return [Finding("devices", "yellow", text, f"No device on {without}: these ranks would compute on the CPU.")]
    here = Counter(rank["host"] for rank in ranks)
    crowded = [host for host in here if here[host] > counts[host]]
    if crowded:
        host = crowded[0]
        advice = f"{here[host]} ranks share {_count(counts[host], 'device')} of {host}: one rank a device is best."
        return [Finding("devices", "yellow", text, advice)]
    return [Finding("devices", "green", text)]


def judge_communication(times: Mapping[int, float] | None) -> list[Finding]:
    """How long an allreduce takes here."""
    if not times:
        return []
    small, large = min(times), max(times)
    text = (
        f"allreduce of {small} B in {1e6 * times[small]:.0f} us, "
        f"of {large >> 20} MiB in {1e3 * times[large]:.1f} ms ({large / times[large] / 1e9:.2f} GB/s)"
    )
    if times[small] > SLOW_ALLREDUCE:
        advice = (
            "A millisecond and more for a few bytes is typical of more ranks than cores, or of TCP between hosts "
            "with a faster network: check the binding of ranks and the transport of the MPI library."
        )
        return [Finding("communication", "yellow", text, advice)]
    return [Finding("communication", "green", text)]


def judge_hdf5(hdf5: Mapping[str, Any]) -> list[Finding]:
    """Build of HDF5, and whether a record can be read while it is written."""
    if hdf5["error"]:
        return [Finding("HDF5", "red", f"h5py cannot be imported: {hdf5['error']}", "Install it: pip install h5py.")]
    build = "parallel build" if hdf5["parallel"] else "serial build, which is all hpcopt needs"
    text = f"{hdf5['version']}, {build}"
    if hdf5["swmr"]:
        advice = (
            f"A record cannot be written and read at once here: {hdf5['swmr']} If the file system has no locks, set "
            "HDF5_USE_FILE_LOCKING=FALSE; otherwise use another directory for runs."
        )
        return [Finding("HDF5", "red", text, advice)]
    return [Finding("HDF5", "green", f"{text}; records can be read while they are written")]


def judge_disk(disk: Mapping[str, Any]) -> list[Finding]:
    """Where runs will be written."""
    kind = f" ({disk['file_system']})" if disk["file_system"] else ""
    if disk["error"]:
        advice = f"Runs cannot be written there: {disk['error']}. Start elsewhere, or use --run-dir."
        return [Finding("disk", "red", f"{disk['path']}{kind}", advice)]
    text = f"{disk['path']}{kind}: {disk['rate'] / 1e6:.0f} MB/s written, {disk['free'] / 2**30:.1f} GiB free"
    if disk["free"] < LITTLE_SPACE:
        return [Finding("disk", "yellow", text, "Little space: a run that fills the disk goes on without a record.")]
    if disk["file_system"] in ("tmpfs", "ramfs"):
        return [Finding("disk", "yellow", text, "This is memory: runs are gone after a reboot or the end of the job.")]
    if disk["rate"] < SLOW_WRITES:
        return [Finding("disk", "yellow", text, "Slow: prefer a scratch file system for runs.")]
    return [Finding("disk", "green", text)]


def judge_versions(ranks: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Versions that are too old, missing, or not the same everywhere."""
    first = ranks[0]
    known = {"python": first["python"], **{name: version for name, version in first["packages"].items() if version}}
    text = ", ".join(f"{name} {version}" for name, version in known.items())
    other = next(
        (rank for rank in ranks if (rank["python"], rank["packages"]) != (first["python"], first["packages"])), None
    )
    if other is not None:
        advice = (
            f"{other['host']} has other versions than {first['host']}: use one environment on a shared file system."
        )
        return [Finding("versions", "red", text, advice)]
    for name, oldest in REQUIRED.items():
        version = first["packages"].get(name)
        needed = ".".join(map(str, oldest))
        if version is None:
            advice = f"{name} is not installed: pip install '{name}>={needed}'."
            return [Finding("versions", "red", text, advice)]
        if _numbers(version) < oldest:
            return [Finding("versions", "red", text, f"{name} {version} is too old: pip install '{name}>={needed}'.")]
    return [Finding("versions", "green", text)]


def judge_variables(ranks: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """The variables of launchers and thread libraries, as rank 0 has them."""
    shown = ", ".join(f"{name}={value}" for name, value in ranks[0]["variables"].items())
    return [Finding("variables", "green", shown or "none of launchers, batch systems or thread libraries")]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
