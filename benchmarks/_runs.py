"""Runs of ``hpcopt`` under mpirun for a benchmark; one that is finished is read, not repeated."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcopt.analysis.history import open_run
from hpcopt.analysis.summary import summary

REPOSITORY = Path(__file__).resolve().parents[1]
JOBS = REPOSITORY / "jobs"
HPCOPT = [sys.executable, "-m", "hpcopt"]
OWN_RECORD = "told.json"
DONE = ("finished", "diverged")


@dataclass(frozen=True)
class Run:
    """A method at a rate with one seed: its name and its evaluations, in order."""

    name: str
    history: Sequence[dict[str, Any]]

    def at(self, work: float, figure: str) -> float:
        """A figure of the last evaluation before so much work, NaN where the run ended before without it."""
        rows = [row for row in self.history if row["gradient_equivalents"] <= work * (1 + 1e-9)]
        found = rows[-1][figure]
        return math.nan if found is None else float(found)

    def seconds(self, reached: float, figure: str = "test_accuracy") -> float:
        """Seconds of training until the first evaluation with so high a figure, infinite if there is none."""
        return min((row["seconds"] for row in self.history if (row[figure] or 0) >= reached), default=math.inf)


def trained(
    job: Path, ranks: int, parent: Path, name: str, root: str, settings: Sequence[str], *, resume: bool = False
) -> dict[str, Any]:
    """What ``hpcopt inspect --json --history`` says of a run, which is trained first if it is not there.

    Added is ``passes_of_a_batch``: what the last batch, with overlap, is of the training set.

    Args:
        job: the job file.
        ranks: number of processes.
        parent: where run directories lie. A run's own is ``name`` and a digest of job and settings, so that a run of
            other settings is never taken for it.
        name: of the run.
        root: folder with the data.
        settings: ``table.key=value``, as for ``hpcopt run --set``.
        resume: go on with a run that was interrupted, whose seconds may then be of several machines; else it is
            trained anew.
    """
    directory = directory_of(parent, name, [job.read_text(encoding="utf-8"), *settings])
    if not finished(directory):
        options = [word for setting in (f"data.root={root}", *settings) for word in ("--set", setting)]
        command = ["mpirun", "-n", str(ranks), *HPCOPT, "run", str(job), "--run-dir", str(directory)]
        command += [] if resume else ["--fresh"]
        status = subprocess.run([*command, *options], cwd=REPOSITORY, check=False).returncode
        if not finished(directory):
            raise SystemExit(f"{' '.join(command)} ended with status {status}")
    result = told(directory)
    result["passes_of_a_batch"] = result["history"][-1]["batch"] / _facts(directory)["training_samples"]
    return result


def directory_of(parent: Path, name: str, settings: Sequence[str]) -> Path:
    """Where a run lies: ``name`` and a digest of all that it is made from."""
    digest = hashlib.blake2b("\n".join(settings).encode(), digest_size=4)
    return parent.resolve() / f"{name}-{digest.hexdigest()}"


def told(directory: Path) -> dict[str, Any]:
    """What a run came to: of hpcopt, what ``inspect --json --history`` says; of other methods, their own record."""
    try:
        record: dict[str, Any] = json.loads((directory / OWN_RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return summary(open_run(directory))
    return record


def finished(directory: Path) -> bool:
    """Whether there is a run that came to its end."""
    return _facts(directory).get("status") in DONE


def percent(value: float | None) -> str:
    """A fraction in percent, "-" where there is none."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.2f}"


def reductions(told: dict[str, Any], bytes_of_a_number: int = 4) -> float:
    """Reductions of n numbers for each gradient of a batch, or work that equals it; gradient descent has 1.

    The scalars between them add less than a thousandth.
    """
    vectors = told["communication"]["bytes"] / (bytes_of_a_number * told["parameters"])
    return float(vectors * told["passes_of_a_batch"] / told["work"]["gradient_equivalents"])


def _facts(directory: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((directory / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts
