"""Jobs that run one after another under a launcher, and what came of them. This process does not touch MPI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

JOB = """
[run]
device = "cpu"
[data]
source = "mnist-5k"
[model]
name = "mlp"
widths = [128]
"""
WORKER = Path(__file__).resolve().with_name("_worker.py")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_mpi_yield_when_idle": "true",
}
"""One thread a rank on any number of ranks; Open MPI may put more of them on a machine than it has cores."""


def ran(
    launcher: Sequence[str], plan: Mapping[str, Sequence[str]], environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What came of the plan's jobs, under a launcher such as ``mpirun -n 2``.

    Raises:
        SystemExit: a job failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, told = Path(folder) / "plan.json", Path(folder) / "told.json"
        asked.write_text(json.dumps(plan), encoding="utf-8")
        command = [*launcher, sys.executable, str(WORKER), str(asked), str(told)]
        done = subprocess.run(command, env=os.environ | ENVIRONMENT | dict(environment or {}), check=False)
        if done.returncode or not told.exists():
            raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}")
        found: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
    return found
