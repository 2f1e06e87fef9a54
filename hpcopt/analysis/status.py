"""Where a run stands at this moment: how far, how fast, until when, and whether it still gives a sign of life."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from hpcopt.analysis.history import Run
from hpcopt.analysis.summary import point
from hpcopt.train.run.directory import METRICS, STATUS, plain
from hpcopt.train.run.halt import read_halt
from hpcopt.train.run.lock import FILE_NAME as LOCK
from hpcopt.train.watchdog import NOTE_BYTES, SILENCE, describe_silence, note_path

WINDOW_SECONDS = 60.0
WINDOW_ROWS = 10
"""The rate is that of so much of the latest training time, and of so many iterations at least."""

WINDOW_LOOKS = 5
"""The slowest rank is that of the iterations before so many of the latest evaluations."""

SILENT_SECONDS = 60.0
SILENT_ITERATIONS = 3.0
"""A run is silent when nothing was written for so long, and for so many of its slowest recent iterations."""


def standing(run: Run) -> dict[str, Any]:
    """Everything ``hpcopt status --json`` prints of a run, ready for JSON: what is unknown is None.

    ``iterations`` and ``epochs`` are done, ``planned`` says how far the run is to go. ``rate`` is in iterations a
    second of training; ``remaining_seconds`` counts evaluations and saves too, a bound where a run may end sooner.
    """
    facts, iterations, evaluations = run.facts, run.iterations, run.evaluations
    done, epochs, seconds = (np.append(0.0, iterations[name]) for name in ("iteration", "epoch", "seconds"))
    recent, overhead = _recent(seconds), _overhead(evaluations)
    spent = seconds[-1] - seconds[recent]
    speeds = [(counts[-1] - counts[recent]) / spent if spent > 0 else 0.0 for counts in (done, epochs)]
    found: dict[str, Any] = {
        "run": run.name,
        "path": str(run.path),
        "status": run.status,
        "stop_reason": facts.get("stop_reason"),
        "iterations": int(done[-1]),
        "epochs": epochs[-1],
        "seconds": seconds[-1],
        "planned": facts.get("planned"),
        "loss": iterations["loss"][-1] if iterations.size else None,
        "evaluation": point(evaluations, -1),
        "rate": speeds[0] or None,
        "remaining_seconds": None,
        "estimated_end": None,
        "slowest_rank": slowest_rank(run.ranks),
        "checkpoint": _last_checkpoint(run),
        "process": {name: facts.get(name) for name in ("host", "pid", "job")},
        "stopping": None,
        **_signs(run, float(np.diff(seconds[recent:]).max(initial=0.0)) * overhead),
    }
    if run.status == "running":
        planned = facts.get("planned") or {}
        found |= _end(run, _remaining(planned, (done[-1], epochs[-1], seconds[-1]), speeds, overhead))
    return {key: plain(value) for key, value in found.items()}


def _end(run: Run, remaining: float | None) -> dict[str, Any]:
    """When a run that goes on will end, and who asked it to end before."""
    halt, end = read_halt(run.path), None
    if remaining is not None:
        # A job without an end in sight may have one that no calendar has.
        with suppress(OverflowError, ValueError, OSError):
            end = _utc(time.time() + remaining)
    return {
        "stopping": None if halt is None else {k: v for k, v in asdict(halt).items() if k != "owner"},
        "remaining_seconds": remaining,
        "estimated_end": end,
    }


def slowest_rank(table: np.recarray) -> dict[str, Any] | None:
    """The rank that computed longest lately, and the share of their time that the others waited; None for one rank."""
    step, waited = (table[name][-WINDOW_LOOKS:].sum(axis=0) for name in ("seconds_step", "seconds_waited"))
    if step.ndim == 0 or step.size < 2 or not np.all(step > 0):
        return None
    slowest = int(np.argmax(step - waited))
    others = np.delete(waited / step, slowest)
    return {"rank": slowest, "waits": waited[slowest] / step[slowest], "others_wait": float(others.mean())}


def _recent(seconds: np.ndarray) -> int:
    """Where the window begins of which the rate is taken."""
    begin = int(np.searchsorted(seconds, seconds[-1] - WINDOW_SECONDS))
    return max(0, min(begin, seconds.size - 1 - WINDOW_ROWS))


def _overhead(evaluations: np.recarray) -> float:
    """Time with evaluations and saves over training time, up to now."""
    if not evaluations.size or not evaluations["seconds"][-1] > 0:
        return 1.0
    return max(1.0, float(evaluations["wall_seconds"][-1] / evaluations["seconds"][-1]))


def _remaining(
    planned: dict[str, Any], done: tuple[float, float, float], speeds: list[float], overhead: float
) -> float | None:
    """Seconds until the first of the planned ends."""
    ends = []
    for name, count, speed in zip(("iterations", "epochs"), done, speeds, strict=False):
        if planned.get(name) is not None and speed > 0:
            ends.append((planned[name] - count) / speed * overhead)
    if planned.get("seconds") is not None:
        ends.append(planned["seconds"] - done[2] * overhead)
    return max(0.0, min(ends)) if ends else None


def _last_checkpoint(run: Run) -> dict[str, Any] | None:
    if not (found := run.checkpoints):
        return None
    newest = found[-1]
    age = None
    if newest.created is not None:
        age = max(0.0, time.time() - datetime.fromisoformat(newest.created.replace("Z", "+00:00")).timestamp())
    return {"step": newest.step, "created": newest.created, "age_seconds": age}


def _signs(run: Run, slowest: float) -> dict[str, Any]:
    """Whether the process lives, as far as it can be seen from here, and when something was last written."""
    running, here = run.status == "running", run.facts.get("host") == socket.gethostname()
    last = max(map(_modified, (run.path / STATUS, run.path / METRICS, run.path / LOCK)))
    silent = max(0.0, time.time() - last)
    found: dict[str, Any] = {
        "alive": (True if here else None) if running else False,
        "doing": _note(run.path) if running else None,
        "last_sign": _utc(last) if last else None,
        "last_sign_seconds": silent if last else None,
        "silent": running and silent > max(SILENT_SECONDS, SILENT_ITERATIONS * slowest),
        "silence": None,
    }
    if found["silent"] and _modified(run.path / "log" / SILENCE) > last:
        found["silence"] = describe_silence(run.path, int(run.facts.get("ranks") or 1), round(silent))
    return found


def _note(path: Path) -> str | None:
    """What rank 0 is about."""
    with suppress(OSError):
        return note_path(path, 0).read_text(errors="replace")[:NOTE_BYTES].strip() or None
    return None


def _modified(path: Path) -> float:
    with suppress(OSError):
        return os.stat(path).st_mtime
    return 0.0


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
