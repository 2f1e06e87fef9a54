"""A Slurm cluster on this machine for the whole session, and the jobs that ``hpcopt submit`` puts on it."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpcopt.cluster.queue import FINAL
from tests.fault import conftest
from tests.fault.conftest import ROOT, Finished, other_mpi, own_mpi

PROGRAM = str(ROOT / "slurm" / "test-cluster")
NODES = 3
CANNOT = 77
"""Exit status of the program where a machine cannot have a cluster."""

SAVE_BEFORE = 570
SUBMIT = ("hpcopt", "submit", "job.toml", *"--nodes 2 --ntasks-per-node 1 --time 30".split())
"""One rank on each of two nodes."""
PATIENCE = 300.0
"""Seconds to wait for what must come."""


class Cluster:
    """Commands of somebody who is logged in on it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.configuration = folder, folder / "slurm.conf"

    def run(self, *words: str, cwd: Path | None = None, mpi: str = "own", timeout: float = PATIENCE) -> Finished:
        """One command, with the environment's own MPI or the other one."""
        chosen = own_mpi() if mpi == "own" else other_mpi()
        changes = {
            "HPCOPT_TEST_CLUSTER": str(self._folder),
            "SLURM_CONF": str(self.configuration),
            "PATH": os.pathsep.join([str(Path(chosen.mpirun).parent), os.environ["PATH"]]),
            # Ranks of different nodes are on the same cores here: Open MPI would put them all on the first.
            "PRTE_MCA_hwloc_default_binding_policy": "none",
            # With it, all ranks would be on the first node.
            "PRTE_MCA_rmaps_default_mapping_policy": None,
            "HYDRA_LAUNCHER": None,
        }
        return conftest.run(conftest.command(words), conftest.environment(chosen.lib, changes), timeout, cwd)

    def ask(self, *words: str) -> str:
        """What a command prints, which must succeed."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, path: Path, *options: str, mpi: str = "own") -> Job:
        """Submit the job of a folder; these options take the place of the usual ones."""
        done = self.run(*SUBMIT, "--run-dir", "out", "--save-before", str(SAVE_BEFORE), *options, cwd=path, mpi=mpi)
        assert done.returncode == 0, done.stderr
        number = re.match(r"job (\d+): submitted", done.stdout)
        assert number is not None, done.stdout
        return Job(self, number[1], path, done.stdout)


@dataclass(frozen=True)
class Job:
    """A job in the queue; ``said`` is what ``hpcopt submit`` printed."""

    cluster: Cluster
    number: str
    path: Path
    said: str

    def shown(self, key: str) -> list[str]:
        """What Slurm says of it, or of each task of an array."""
        text = self.cluster.ask("scontrol", "--oneliner", "show", "job", self.number)
        return re.findall(rf"(?<!\S){key}=(\S*)", text)

    def wait_for(self, ready: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Until ``ready``."""
        deadline = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < deadline, f"{self.shown('JobState')}\n{self.output()}"
            time.sleep(0.2)

    def finish(self, seconds: float = PATIENCE) -> list[str]:
        """Wait for its end, and say in what state it is then, or in what states the tasks of an array are."""
        self.wait_for(lambda: all(state in FINAL for state in self.shown("JobState")), seconds)
        return self.shown("JobState")

    def output(self) -> str:
        """All that the job has printed, with single blanks."""
        texts = [file.read_text() for file in sorted(self.path.glob(f"slurm-{self.number}*.out"))]
        return " ".join(" ".join(texts).split())

    def near_its_limit(self) -> None:
        """Slurm will tell the running job to save itself the next time that it looks at time limits, each 30 seconds.

        It sends the signal up to 30 seconds early. A job that starts again waits for ``go_on``, with more time than it
        needs: however slow the machine is, the next signal is not sent while the job is still starting.
        """
        minutes = int(self.shown("RunTime")[0].split(":")[1])
        self.cluster.ask("scontrol", "hold", self.number)
        self._set_limit(minutes + 1 + SAVE_BEFORE // 60)

    def go_on(self) -> None:
        """Let a job start again that was near its limit."""
        self._set_limit(30)
        self.cluster.ask("scontrol", "release", self.number)

    def _set_limit(self, minutes: int) -> None:
        self.cluster.ask("scontrol", "update", f"JobId={self.number}", f"TimeLimit={minutes}")

    def processes(self) -> Sequence[int]:
        """Process numbers of what it has started."""
        return conftest.processes_with(f"SLURM_JOB_ID={self.number}", f"SLURM_CONF={self.cluster.configuration}")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster of three nodes, or the reason why there is none."""
    given = os.environ.get("HPCOPT_TEST_CLUSTER")
    found = Cluster(Path(given or tempfile.gettempdir(), *([] if given else [f"hpcopt-slurm-{os.getpid()}"])))
    try:
        done = found.run(PROGRAM, "up", str(NODES), timeout=2 * PATIENCE)
        if done.returncode == CANNOT:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stderr
        yield found
    finally:
        found.ask(PROGRAM, "down")
