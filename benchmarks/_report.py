"""What stands above every figure in benchmarks/results: the command, the machine and the versions."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from hpcopt import __version__

PACKAGES = ("torch", "numpy", "mpi4py", "h5py", "scipy")
OWN = ("runs", "output")
"""Options that say where runs and the report lie, which changes no figure."""
REPEATED = ("set", "newton")
"""Options that are given once for each of their values."""


def environment_lines(ranks: int | None = None) -> list[str]:
    """Markdown list items: date, processor, memory, system, Python, packages, and MPI with its ranks if in use.

    ``ranks`` is the number of ranks of a job that was started by this process, which is otherwise that of its own.
    """
    lines = [
        f"- date: {datetime.now(timezone.utc):%Y-%m-%d}",
        f"- processor: {_processor()}, {_cores()} cores for this process, {_memory()} of memory",
        f"- system: {platform.system()} {platform.release()}, Python {platform.python_version()}",
        "- packages: " + ", ".join(_versions()),
    ]
    return lines + _mpi_lines(ranks)


def write_report(path: str | Path, title: str, command: str, lines: Sequence[str], ranks: int | None = None) -> None:
    """Write ``title``, the ``command`` that repeats the measurement, the environment, then ``lines``, as Markdown."""
    text = [f"# {title}", "", "```", command, "```", "", *environment_lines(ranks), "", *lines, ""]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("\n".join(text), encoding="utf-8")


def spelled(options: argparse.Namespace, *left_out: str) -> str:
    """The options of a measurement as words behind its script: those at their defaults too, which may change.

    The folder of the data stands as DIR. Flags that are off, options without a value, ``OWN``, and ``left_out``, such
    as arguments without a name, have no words.
    """
    words: list[str] = []
    for name, value in vars(options).items():
        if name in (*OWN, *left_out) or value is None or value is False:
            continue
        flag, values = f"--{name.replace('_', '-')}", value if isinstance(value, list) else [value]
        if name == "root":
            words += [flag, "DIR"]
        elif name in REPEATED:
            words += [word for setting in values for word in (flag, _without_root(setting))]
        elif value is True:
            words.append(flag)
        else:
            words += [flag, *(f"{each:g}" if isinstance(each, float) else str(each) for each in values)]
    return "".join(f" {shlex.quote(word)}" for word in words)


def _without_root(setting: str) -> str:
    """A setting of a job, with DIR for the folder of the data."""
    return "data.root=DIR" if setting.startswith("data.root=") else setting


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table with aligned columns, numbers to the right."""
    widths = [max(3, *(len(row[i]) for row in (head, *rows))) for i in range(len(head))]
    ruler = [(width - 1) * "-" + (":" if i else "-") for i, width in enumerate(widths)]
    cells = [[cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
             for row in (head, ruler, *rows)]  # fmt: skip
    return ["| " + " | ".join(row) + " |" for row in cells]


def _versions() -> list[str]:
    """Names and versions of what computed, of hpcopt with the commit where there is a checkout."""
    known = [f"{name} {version}" for name in PACKAGES if (version := _version(name))]
    return [f"hpcopt {__version__}{_commit()}", *known]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f" ({done.stdout.strip()})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (ValueError, OSError):
        return "unknown size"


def _mpi_lines(ranks: int | None) -> list[str]:
    from hpcopt.comm.mpi_library import initialised_mpi, library_name

    mpi = initialised_mpi()
    if mpi is None:
        return []
    world = mpi.COMM_WORLD
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    return [f"- MPI: {library_name(mpi)}, {ranks or world.size} ranks; OMP_NUM_THREADS {threads}"]
