"""``hpcopt inspect RUN``: one run, as tables or as JSON; a checkpoint is shown by ``inspect_checkpoint``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from hpcopt.analysis.checkpoint import is_checkpoint
from hpcopt.analysis.history import open_run
from hpcopt.analysis.summary import summary
from hpcopt.checkpoint.folder import LATEST
from hpcopt.cli.format import NONE, colour_of, console, grid, in_bytes, number, share, table, whole
from hpcopt.cli.inspect_checkpoint import inspect_checkpoint
from hpcopt.errors import UsageError

POINTS = (
    ("epoch", "epoch", number),
    ("train\nloss", "train_loss", number),
    ("train\naccuracy", "train_accuracy", share),
    ("test\nloss", "test_loss", number),
    ("test\naccuracy", "test_accuracy", share),
    ("explained\nvariance", "test_explained_variance", number),
)

HISTORY = (
    ("epoch", "epoch", number),
    ("iter.", "iteration", whole),
    ("seconds", "seconds", number),
    ("train\nloss", "train_loss", number),
    ("test\nloss", "test_loss", number),
    ("test\naccuracy", "test_accuracy", share),
    ("explained\nvariance", "test_explained_variance", number),
    ("gradient\nnorm", "gradient_norm", number),
    ("radius", "radius", number),
    ("gradient\nequiv.", "gradient_equivalents", number),
)

MOST_RANKS = 8
"""Of more ranks only the extremes are shown."""

MOST_CHECKPOINTS = 8
"""Of more checkpoints only the first and the last are shown."""


def inspect(
    path: str, as_json: bool, history: bool, spectra: bool = False, other: str | None = None, which: str | None = None
) -> None:
    """Print a run; or one checkpoint when ``path`` is one, or when something is asked that only a checkpoint tells.

    Args:
        path: run directory or checkpoint.
        as_json: print JSON.
        history: also every evaluation of a run.
        spectra: the singular values of a checkpoint's layers.
        other: a checkpoint or run to compare the checkpoint with.
        which: ``"latest"`` or ``"best"`` parameters of the checkpoint.

    Raises:
        UsageError: there is neither at ``path``, or the options do not fit.
        CheckpointError: the checkpoint is damaged.
    """
    if not (spectra or other or which or is_checkpoint(Path(os.path.abspath(path)))):
        inspect_run(path, as_json, history)
        return
    if history:
        raise UsageError("--history is of a run: give the run directory, without --spectra, --difference and --which.")
    inspect_checkpoint(path, which or LATEST, as_json, spectra, other)


def inspect_run(run: str, as_json: bool, history: bool) -> None:
    """Print the summary of a run, as JSON with the keys of ``analysis.summary`` or as tables."""
    facts = summary(open_run(run))
    if as_json:
        print(json.dumps(facts, indent=2, allow_nan=False))
        return
    out = console()
    out.print(_header(facts))
    out.print(_figures(facts))
    out.print(_costs(facts))
    if history:
        out.print(_history(facts["history"]))


def _header(facts: Mapping[str, Any]) -> Table:
    status, reason = facts["status"], facts["stop_reason"]
    rows = [
        ("run", f"[bold]{escape(facts['run'])}[/]"),
        ("status", f"[{colour_of(status)}]{status}[/]" + (f": {escape(reason)}" if reason else "")),
        ("solver", _with(facts["solver"], None, "")),
        ("model", _with(facts["model"], facts["parameters"], "parameters")),
        ("data", _with(facts["data"], None, "")),
        ("ranks", _with(facts["ranks"], facts["layout"], "layout", thousands=False)),
    ]
    return grid(rows)


def _with(name: Any, count: Any, what: str, thousands: bool = True) -> str:
    shown = NONE if name is None else escape(str(name))
    if count is None:
        return shown
    return f"{shown}  [dim]{whole(count) if thousands else count} {what}[/]"


def _figures(facts: Mapping[str, Any]) -> Table:
    rows = [[which, *(show(facts[which][name]) for _, name, show in POINTS)] for which in ("initial", "final", "best")]
    return table(["", *(title for title, _, _ in POINTS)], rows, keep=2)


def _costs(facts: Mapping[str, Any]) -> Table:
    spent, sent, steps = facts["work"], facts["communication"], facts["steps"]
    rows = [
        (
            "done",
            f"{whole(facts['iterations'])} iterations, {number(facts['epochs'])} epochs, "
            f"{number(facts['seconds'])} s of training",
        ),
        ("steps", f"{whole(steps['accepted'])} accepted, {whole(steps['rejected'])} rejected"),
        (
            "work",
            f"{number(spent['gradient_equivalents'])} gradient equivalents  [dim]{number(spent['values'])} values, "
            f"{number(spent['gradients'])} gradients, {number(spent['curvature_products'])} curvature products, "
            f"{whole(spent['inner_iterations'])} inner iterations[/]",
        ),
        (
            "communication",
            f"{whole(sent['calls'])} calls, {in_bytes(sent['bytes'])}, {number(sent['seconds_waited'])} s waited",
        ),
    ]
    rows += _times(facts["time"])
    if facts["checkpoints"]:
        rows.append(("checkpoints", _saved(facts["checkpoints"])))
    if len(set(facts["local_iterations"] or ())) > 1:
        rows.append(("local iterations", _by_rank(facts["local_iterations"])))
    return grid(rows)


def _times(spent: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the time went into: on rank 0 of a run that has ended, and in the steps of all ranks if it was measured."""
    rows, ranks = [], spent["by_rank"]
    if spent["all"] is not None:
        parts = ", ".join(f"{number(spent[name])} s {name}" for name in ("evaluation", "record", "checkpoints"))
        rows.append(("time", f"{number(spent['all'])} s  [dim]of it {parts}[/]"))
    if ranks["for_others"]:
        step, waited, others = (float(np.mean(ranks[name])) for name in ("step", "waited", "for_others"))
        parts = f"{number(step - waited)} s computing, {number(waited - others)} s communication"
        rows.append(("a rank's steps", f"{parts}, {number(others)} s waiting for others  [dim]means[/]"))
    return rows


def _saved(found: Sequence[Mapping[str, Any]]) -> str:
    steps = [whole(checkpoint["step"]) + " (best)" * checkpoint["best"] for checkpoint in found]
    shown = steps if len(steps) <= MOST_CHECKPOINTS else [*steps[:2], "...", *steps[-2:]]
    return f"{len(found)}  [dim]after step{'s' * (len(found) > 1)} {', '.join(shown)}[/]"


def _by_rank(means: Sequence[float]) -> str:
    """Means of all ranks where they fit on a line, else the ends of their range and who is there."""
    if len(means) <= MOST_RANKS:
        shown = ", ".join(number(mean) for mean in means)
        return f"{shown}  [dim]mean of a phase on each rank[/]"
    least, most = min(means), max(means)
    ends = [f"{number(end)} (rank {means.index(end)})" for end in (least, most)]
    return f"{ends[0]} to {ends[1]}  [dim]mean of a phase[/]"


def _history(rows: Sequence[Mapping[str, Any]]) -> Table:
    cells = [[show(row[name]) for _, name, show in HISTORY] for row in rows]
    return table([title for title, _, _ in HISTORY], cells)
