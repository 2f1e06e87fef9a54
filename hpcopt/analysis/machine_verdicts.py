"""What ``hpcopt doctor`` says of the machine: HDF5, the disk, versions, variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hpcopt.analysis.verdicts import Finding

REQUIRED = {"torch": (2, 4), "numpy": (1, 26), "mpi4py": (4, 1), "h5py": (3, 10)}
"""The oldest versions that work, as the package's metadata has them."""

SLOW_WRITES = 30e6
LITTLE_SPACE = 1 << 30


def judge_sweeps(ranks: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Whether steps sweep over long vectors at the rate of memory."""
    lacking = [rank for rank in ranks if rank["sweeps"] not in ("compiled", "")]
    if not lacking:
        return [Finding("sweeps", "green", "over long vectors: compiled from C")] if ranks[0]["sweeps"] else []
    advice = (
        f"{lacking[0]['sweeps']} ({lacking[0]['host']}). All works; steps of nlcg and adam take longer beside their "
        "gradient. To compile them install hpcopt again with a C compiler (cc) on PATH: pip install --force-reinstall "
        "--no-deps, and the same source as before."
    )
    return [Finding("sweeps", "yellow", "over long vectors: made of torch's operations", advice)]


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
    if disk["not_seen_by"]:
        hosts = ", ".join(disk["not_seen_by"])
        advice = f"{hosts} does not see what is written there: use --run-dir on a file system that all hosts share."
        return [Finding("disk", "red", f"{disk['path']}{kind}, of one host only", advice)]
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
