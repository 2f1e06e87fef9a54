"""Runs of ``hpcopt`` under mpirun for a benchmark; one that is finished is read, not repeated."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
JOBS = REPOSITORY / "jobs"
HPCOPT = [sys.executable, "-m", "hpcopt"]
DONE = ("finished", "diverged")


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
    digest = hashlib.blake2b("\n".join([job.read_text(encoding="utf-8"), *settings]).encode(), digest_size=4)
    directory = parent.resolve() / f"{name}-{digest.hexdigest()}"
    if _facts(directory).get("status") not in DONE:
        options = [word for setting in (f"data.root={root}", *settings) for word in ("--set", setting)]
        command = ["mpirun", "-n", str(ranks), *HPCOPT, "run", str(job), "--run-dir", str(directory)]
        command += [] if resume else ["--fresh"]
        status = subprocess.run([*command, *options], cwd=REPOSITORY, check=False).returncode
        if _facts(directory).get("status") not in DONE:
            raise SystemExit(f"{' '.join(command)} ended with status {status}")
    words = [*HPCOPT, "inspect", str(directory), "--json", "--history"]
    told = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(told.stdout)
    result["passes_of_a_batch"] = result["history"][-1]["batch"] / _facts(directory)["training_samples"]
    return result


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
