"""srun or mpirun: the one that speaks the language of the MPI library that Python loads, and why.

A launcher that does not speak it starts N worlds of one rank each. Tried were srun's pmi2
with MPICH, its pmix with Open MPI, and the mpirun of either in an allocation. Where the choice is wrong, the run itself
refuses to start (``hpcopt.comm.launch.check_launch``) and says what may fit.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from typing import NamedTuple

from hpcopt.cluster.options import SlurmOptions
from hpcopt.comm.mpi_library import fits, launchers, library_of_child, vendor

LANGUAGES = {
    "MPICH": ("pmi2",),
    "MVAPICH": ("pmi2",),
    "Cray MPICH": ("cray_shasta", "pmi2"),
    "Open MPI": ("pmix",),
}
"""Maker of the library -> the values of srun's --mpi= that it understands. Intel MPI must be told where Slurm's library
is (I_MPI_PMI_LIBRARY), while its mpirun works as it is."""

SECONDS_ALONE = 60
"""srun ends the other ranks so long after the first one has ended: by itself it would let them wait for ever for one
that was killed. Not at once (--kill-on-bad-exit), since ranks of a saved run end a moment apart, with status 75."""


@dataclass(frozen=True)
class Site:
    """What the machine one submits from says.

    Attributes:
        mpi: name and version of the MPI library that Python loads; empty when there is none.
        mpirun: the command that belongs to it; empty when there is none.
        srun: whether there is an srun.
        kinds: values that its --mpi= can have.
        default: the one it has when nothing is said; empty when unknown.
    """

    mpi: str = ""
    mpirun: str = ""
    srun: bool = False
    kinds: tuple[str, ...] = ()
    default: str = ""


class Launcher(NamedTuple):
    """The command that starts the ranks, and why this one."""

    words: tuple[str, ...]
    reason: str

    @property
    def is_srun(self) -> bool:
        """Whether Slurm starts the ranks, and so gives each of them its cores and devices."""
        return os.path.basename(self.words[0]) == "srun"


def look_around() -> Site:
    """Ask this machine. MPI is loaded by another process, since a login node may not let it start."""
    library = library_of_child()
    srun = shutil.which("srun") is not None
    kinds = _said_by("srun", "--mpi=list") if srun else ""
    default = re.search(r"^MpiDefault\s*=\s*(\S+)", _said_by("scontrol", "show", "config"), flags=re.MULTILINE)
    return Site(
        library,
        _mpirun_of(vendor(library)),
        srun,
        tuple(dict.fromkeys(re.findall(r"\b(?:pmi2|pmix(?:_v\d+)?|cray_shasta)\b(?! plugin)", kinds))),
        default[1] if default else "",
    )


def choose_launcher(options: SlurmOptions, site: Site | None = None) -> Launcher:
    """The launcher for this job with the options it needs there; for one the user has chosen, nothing is asked.

    Args:
        options: what is asked of Slurm.
        site: what the machine says; asked when None.
    """
    if options.launcher != "auto":
        words = tuple(shlex.split(options.launcher))
        return Launcher((*words, *_needed(words, options)), "it was asked for (slurm.launcher)")
    site = site or look_around()
    words, reason = _fitting(site)
    return Launcher((*words, *_needed(words, options, vendor(site.mpi))), reason)


def _fitting(site: Site) -> tuple[tuple[str, ...], str]:
    maker, library = vendor(site.mpi), site.mpi or "the MPI library, which could not be loaded here,"
    understood = LANGUAGES.get(maker, ())
    common = [kind for kind in understood if kind in site.kinds]
    if site.srun and any(site.default.startswith(kind) for kind in understood):
        return ("srun", f"--mpi={site.default}"), f"{library} speaks {site.default}, srun's default here"
    if site.mpirun and maker == "Open MPI":
        return (site.mpirun,), f"it belongs to {library}, and {_why_not_srun(site)}"
    if site.srun and common:
        return ("srun", f"--mpi={common[0]}"), f"{library} speaks {common[0]}, and so does srun here"
    if site.mpirun:
        return (site.mpirun,), f"it belongs to {library}, and {_why_not_srun(site)}"
    if site.srun or not site.mpi:
        return ("srun",), f"there is no mpirun of {library} here; whether srun's default fits, the start will show"
    return ("mpirun",), f"there is no srun here, and no mpirun of {library} was found"


def _why_not_srun(site: Site) -> str:
    if not site.srun:
        return "there is no srun here"
    return f"it is not sure to find its ranks under srun, whose default here is {site.default or 'not known'}"


def _needed(words: tuple[str, ...], options: SlurmOptions, maker: str = "") -> list[str]:
    """What the launcher must be told besides; nothing that the user's own command says already."""
    command = os.path.basename(words[0])
    cores = options.cpus_per_task
    if command == "srun":
        wanted = [f"--wait={SECONDS_ALONE}", *([f"--cpus-per-task={cores}"] if cores else [])]
        return [option for option in wanted if not any(w.startswith(option.split("=")[0]) for w in words)]
    # Open MPI would bind every rank to one core, whatever it was given.
    binds = cores is not None and cores > 1 and maker == "Open MPI"
    return ["--bind-to", "none"] if binds else []


def _mpirun_of(maker: str) -> str:
    """The mpirun that fits a library: ``mpirun`` where PATH leads to it, else its full path."""
    fitting = [found["path"] for found in launchers() if maker and fits(vendor(found["version"]), maker)]
    on_path = os.path.realpath(shutil.which("mpirun") or "")
    return "mpirun" if on_path in fitting else next(iter(fitting), "")


def _said_by(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    # Where srun prints its list has changed between versions.
    return done.stdout + done.stderr
