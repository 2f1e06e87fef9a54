"""Whether a job may go on with what another one saved."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hpcopt.config import Job, parse_job
from hpcopt.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAY_CHANGE = (
    "run.name",
    "run.epochs",
    "run.iterations",
    "run.stop",
    "run.evaluate_every",
    "run.give_up_after",
    "run.device",
    "run.share_gpu",
    "data.root",
    "loss.micro_batch",
    "parallel",
    "checkpoint",
    "debug",
    "slurm",
)
"""Keys and tables that say how long and where a run goes on, not what it computes."""


def check_same_job(job: Job, saved: Path) -> None:
    """Compare a resolved job with the job.toml of the run that it is to go on with.

    Raises:
        UsageError: they differ in what is computed. No job.toml there is not an error: then only shapes are compared.
    """
    try:
        text = saved.read_text(encoding="utf-8")
        before = _flat(tomllib.loads(text))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise UsageError(
            f"The job of the run that is to go on, {saved}, cannot be read: {error}. Restore that file, or start anew "
            "with --fresh, which moves the run aside and deletes nothing."
        ) from error
    # A key that hpcopt has learnt since then had its default.
    before = _defaults(text) | before
    now = _flat(tomllib.loads(job.to_toml()))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and not _may_change(key):
            raise UsageError(
                f"The run in {saved.parent} was made with {key} = {_shown(before, key)}, the job now says "
                f"{_shown(now, key)}. A run goes on with what it was begun with: give it back its value, choose "
                "another directory with --run-dir, or start anew with --fresh, which moves the old run aside."
            )


def _defaults(text: str) -> dict[str, Any]:
    """All keys of a saved job as it is read today; none where that is not possible."""
    try:
        return _flat(tomllib.loads(parse_job(text).to_toml()))
    except UsageError:
        return {}


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _may_change(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in MAY_CHANGE)


def _shown(values: dict[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "nothing"
