"""What ``hpcopt doctor`` says of the launch: MPI, the batch job, ranks, threads, devices, messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from hpcopt.cluster.allocation import Allocation
from hpcopt.comm.mpi_library import fits, vendor

Level = Literal["green", "yellow", "red"]

SLOW_ALLREDUCE = 1e-3
LITTLE_TIME = 300.0
MOST_RANKS = 8
"""Of more ranks the devices are only in the facts."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: green is fine, yellow works but costs something, red will not work."""

    topic: str
    level: Level
    text: str
    advice: str = ""


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
            # Ranks that found each other were started by something else.
            works = mpi["size"] > 1 or _one_fits(found, library)
            lines.append(Finding("mpirun", "yellow" if works else "red", text, advice))
    return lines


def _one_fits(found: Sequence[Mapping[str, str]], library: str) -> bool:
    return any(fits(vendor(launcher["version"]), library) for launcher in found)


def judge_job(allocation: Allocation | None, ranks: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """The batch job around the ranks: whether they use all of it, and how much time is left."""
    if allocation is None:
        return []
    # Nodes of Slurm may have names of their own.
    used = len({(rank["host"], rank["variables"].get("SLURMD_NODENAME")) for rank in ranks})
    nodes = _count(allocation.nodes or used, "node")
    text = f"{allocation.job} of Slurm, {nodes}, {_count(len(ranks), 'rank')} started"
    whole = used >= allocation.nodes and not len(ranks) == 1 < allocation.tasks
    advice = "" if whole else "Not all of the job is used: start with srun or mpirun, this command too."
    use = Finding("job", "green" if whole else "yellow", text, advice)
    return [use, _judge_time(allocation)]


def _judge_time(allocation: Allocation) -> Finding:
    left = allocation.seconds_left
    if not allocation.limited:
        return Finding("time", "green", "the job has no time limit")
    if left is None:
        advice = "Slurm does not say when the job ends: ask squeue, and set checkpoint.limit_seconds to less than that."
        return Finding("time", "yellow", "it is not known how much is left", advice)
    text = f"{timedelta(seconds=round(left))} left until the job ends"
    if left < LITTLE_TIME:
        return Finding("time", "yellow", text, "Little time: what is started now is saved and stopped soon, or killed.")
    advice = (
        "A job of hpcopt submit saves its run before that. In another one, set checkpoint.limit_seconds to less, "
        f"such as {0.9 * left:.0f}."
    )
    return Finding("time", "green", text, advice)


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
    cores, share, here = len(frozenset().union(*masks[host])), shares[host], len(masks[host])
    place = f"{here} on {_count(cores, 'core')} of {host}"
    text = f"{_count(share, 'thread')} a rank ({place})"
    if here > cores:
        advice = "More ranks than cores: they take turns, and every collective waits for it. Start fewer ranks."
        return [Finding("threads", "yellow", text, advice)]
    if asked := [rank["variables"]["OMP_NUM_THREADS"] for rank in ranks if "OMP_NUM_THREADS" in rank["variables"]]:
        most = max(asked, key=lambda text: int(text) if text.isdecimal() else 0)
        text = f"OMP_NUM_THREADS={most} a rank, {place}"
        if most.isdecimal() and int(most) * here > cores:
            advice = f"More threads than cores: unset OMP_NUM_THREADS or set it to {share}."
            return [Finding("threads", "yellow", text, advice)]
        return [Finding("threads", "green", text)]
    total = by_host[host][0]["cores_of_host"]
    if 2 * cores <= total and here > 1:
        advice = (
            f"{total - cores} cores of the host are not used. If they are yours, give each rank more of them: "
            "mpirun --bind-to none, or srun --cpus-per-task."
        )
        return [Finding("threads", "yellow", text, advice)]
    return [Finding("threads", "green", text)]


def judge_devices(ranks: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Accelerators that torch sees, and which one each rank takes."""
    broken = [rank["devices"]["error"] for rank in ranks if rank["devices"]["error"]]
    if broken:
        advice = "Install torch into this environment (pip install torch), or load the module that brings it."
        return [Finding("devices", "red", f"torch cannot be imported: {broken[0]}", advice)]
    built_for = ranks[0]["devices"]["built_for"]
    if not any(rank["devices"]["names"] for rank in ranks):
        if built_for and ranks[0]["variables"].get("CUDA_VISIBLE_DEVICES") == "":
            return [
                Finding("devices", "yellow", "CPU; the devices are hidden", "Unset CUDA_VISIBLE_DEVICES to use them.")
            ]
        return [
            Finding("devices", "green", f"CPU ({ranks[0]['cpu']})" + (f", torch for {built_for}" if built_for else ""))
        ]
    taken = [_device_of(rank) for rank in ranks]
    names = Counter(dict(filter(None, taken)).values())
    text = ", ".join(f"{count} x {name}" for name, count in names.items()) + f", torch for {built_for}"
    if len(ranks) <= MOST_RANKS:
        text += "; " + ", ".join(f"rank {number}: {_short(device)}" for number, device in enumerate(taken))
    without = sorted({rank["host"] for rank, device in zip(ranks, taken, strict=True) if device is None})
    if without:
        advice = f"No device on {', '.join(without)}: these ranks would compute on the CPU."
        return [Finding("devices", "yellow", text, advice)]
    if len(set(taken)) < len(taken):
        (host, _), _ = Counter(filter(None, taken)).most_common(1)[0][0]
        here = [device for device in taken if device and device[0][0] == host]
        advice = f"{len(here)} ranks share {_count(len(set(here)), 'device')} of {host}. One rank a device is best; "
        advice += "a job lets ranks share with run.share_gpu = true only."
        return [Finding("devices", "yellow", text, advice)]
    return [Finding("devices", "green", text)]


def _device_of(rank: Mapping[str, Any]) -> tuple[tuple[str, str], str] | None:
    """Host, UUID (or position) and name of the device that a rank takes, None for the CPU.

    Batch systems may show each rank one device of its own, which then is number 0 for all: only the UUID tells.
    """
    names, uuids = rank["devices"]["names"], rank["devices"].get("uuids") or ()
    if not names:
        return None
    index = rank["local_rank"] % len(names)
    known = uuids[index] if index < len(uuids) else ""
    return (rank["host"], known or str(index)), names[index]


def _short(device: tuple[tuple[str, str], str] | None) -> str:
    return "CPU" if device is None else device[0][1].removeprefix("GPU-")[:8]


def judge_communication(host: Mapping[int, float], device: Mapping[str, Any]) -> list[Finding]:
    """How long an allreduce takes here, of the memory of hosts and of devices."""
    findings = []
    if host:
        advice = ""
        if host[min(host)] > SLOW_ALLREDUCE:
            advice = (
                "A millisecond and more for a few bytes is typical of more ranks than cores, or of TCP between hosts "
                "with a faster network: check the binding of ranks and the transport of the MPI library."
            )
        findings.append(Finding("communication", "yellow" if advice else "green", _times(host), advice))
    if device:
        findings.append(_judge_device_memory(device))
    return findings


def _judge_device_memory(device: Mapping[str, Any]) -> Finding:
    """By copies in the memory of the host, and directly where that gives the right results."""
    staged, direct = device["staged"], device["direct"]
    text = f"through the host, {_times(staged)}"
    if not direct:
        return Finding("device memory", "green", f"{text}; MPI does not read it itself: {device['reason']}")
    text = f"{text}; by MPI itself, {_times(direct)}"
    faster = direct[max(direct)] < staged[max(staged)]
    advice = "parallel.gpu_aware = true is faster here." if faster else "Leave parallel.gpu_aware = false."
    return Finding("device memory", "green", text, advice)


def _times(times: Mapping[int, float]) -> str:
    small, large = min(times), max(times)
    return (
        f"allreduce of {small} B in {1e6 * times[small]:.0f} us, "
        f"of {large >> 20} MiB in {1e3 * times[large]:.1f} ms ({large / times[large] / 1e9:.2f} GB/s)"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
