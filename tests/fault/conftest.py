"""Start whole jobs from a process without MPI, and never wait for one that hangs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MARK = "HPCOPT_TEST_JOB"
# What tells a process that it is a rank; the tests themselves may run inside a job.
RANK_VARIABLES = ("OMPI_COMM_WORLD_", "PMI_", "PMIX_", "SLURM_", "MPI_LOCAL", "HYDI_")


@dataclass(frozen=True)
class Finished:
    """A job that ended: on its own, or killed after ``timeout`` seconds (``returncode`` is then -9).

    ``seconds`` is how long it took, ``ended`` when that was (``time.time()``).
    """

    returncode: int
    stdout: str
    stderr: str
    seconds: float
    ended: float
    timed_out: bool = False


@dataclass(frozen=True)
class Installation:
    """One MPI: its launcher, and the folder of its library when that is not the environment's own."""

    mpirun: str
    lib: str | None = None


def own_mpi() -> Installation:
    """The MPI of this Python's environment, else the first on PATH."""
    beside = Path(sys.executable).parent / "mpirun"
    mpirun = str(beside) if beside.exists() else shutil.which("mpirun")
    if mpirun is None:
        pytest.skip("no mpirun beside Python or on PATH")
    return Installation(mpirun)


def other_mpi() -> Installation:
    """The MPI in the prefix HPCOPT_TEST_OTHER_MPI."""
    prefix = os.environ.get("HPCOPT_TEST_OTHER_MPI", "")
    mpirun = Path(prefix) / "bin" / "mpirun"
    if not prefix or not mpirun.exists():
        pytest.skip("HPCOPT_TEST_OTHER_MPI does not name the prefix of a second MPI (pip install --prefix DIR mpich)")
    return Installation(str(mpirun), str(Path(prefix) / "lib"))


def environment(library: str | None, changes: Mapping[str, str | None]) -> dict[str, str]:
    """The environment of a job: ours without what belongs to a surrounding job, and what small machines need."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(RANK_VARIABLES)}
    defaults = {
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "OMPI_MCA_mpi_yield_when_idle": "true",
        "HYDRA_LAUNCHER": "fork",
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
    }
    if os.geteuid() == 0:
        defaults |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    env = defaults | env | {"COLUMNS": "1000"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    if library is not None:
        env["MPI4PY_LIBMPI"] = library
    for name, value in changes.items():
        env.pop(name, None)
        if value is not None:
            env[name] = value
    return env


def command(argv: Sequence[str]) -> list[str]:
    """``hpcopt ...``, ``script.py ...`` and ``-m module ...`` are started with this Python, all else as it is."""
    words = [str(word) for word in argv]
    if words[0] == "hpcopt":
        return [sys.executable, "-m", *words]
    if words[0] == "-m" or words[0].endswith(".py"):
        return [sys.executable, *words]
    return words


def run_words(*settings: str, directory: str = "out") -> list[str]:
    """The command that runs ``job.toml`` into a directory, with ``--set`` for each setting."""
    return ["hpcopt", "run", "job.toml", "--run-dir", directory, *(w for s in settings for w in ("--set", s))]


def processes_with(*entries: str) -> list[int]:
    """Process numbers of all that have these entries in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if {entry.encode() for entry in entries} <= set((folder / "environ").read_bytes().split(b"\0")):
                found.append(int(folder.name))
    return found


def members(mark: str) -> list[int]:
    """Process numbers of the job with this mark: ranks may have left the launcher's process group."""
    return processes_with(f"{MARK}={mark}")


def end(process: subprocess.Popen[str], mark: str) -> None:
    """Let every Python process of the job show its stacks, then kill all of them."""
    for number in members(mark):
        with suppress(OSError):
            if "python" in Path(f"/proc/{number}/comm").read_text():
                os.kill(number, signal.SIGABRT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(3)
    for number in members(mark):
        with suppress(OSError):
            os.kill(number, signal.SIGKILL)
    process.kill()
    process.wait()


def run(words: list[str], env: dict[str, str], timeout: float, cwd: Path | None) -> Finished:
    """Run one job to its end. Output goes to files: a pipe would wait for every process that holds it."""
    mark = uuid.uuid4().hex
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.monotonic()
        process = subprocess.Popen(
            words, env=env | {MARK: mark}, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=err, text=True
        )
        timed_out = False
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
            end(process, mark)
        except BaseException:
            end(process, mark)
            raise
        seconds, ended = time.monotonic() - start, time.time()
        for stream in (out, err):
            stream.seek(0)
        return Finished(-9 if timed_out else process.returncode, out.read(), err.read(), seconds, ended, timed_out)


Launch = Callable[..., Finished]


@pytest.fixture
def launch() -> Launch:
    """``launch(n, argv, timeout=60, env=None, mpi="own", cwd=None)`` runs a job of n ranks and returns ``Finished``.

    n = 0 starts the process without a launcher. ``env`` holds changes to the environment, None removes a variable.
    ``mpi="other"`` takes the MPI in HPCOPT_TEST_OTHER_MPI, and skips the test when there is none; ``"mismatched"``
    takes its launcher with the library of the environment's own MPI.
    """

    def start(
        n: int,
        argv: Sequence[str],
        timeout: float = 60.0,
        env: Mapping[str, str | None] | None = None,
        mpi: str = "own",
        cwd: Path | None = None,
    ) -> Finished:
        chosen = own_mpi() if mpi == "own" else other_mpi()
        library = None if mpi == "mismatched" else chosen.lib
        words = [*([chosen.mpirun, "-n", str(n)] if n else []), *command(argv)]
        return run(words, environment(library, env or {}), timeout, cwd)

    return start
