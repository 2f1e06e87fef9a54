"""``hpcopt status RUN...``: where runs stand at this moment."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hpcopt.analysis.history import open_run
from hpcopt.analysis.status import standing
from hpcopt.checks import is_number
from hpcopt.cli.format import NONE, colour_of, console, duration, grid, number, share, table, whole
from hpcopt.comm.faults import paragraph
from hpcopt.errors import HpcoptError, UsageError

TITLES = (
    *("run", "status", "iteration", "epoch", "loss", "test\naccuracy", "per\nsecond"),
    *("to go", "slowest\nrank", "saved\nago", "written\nago"),
)


def status(paths: Sequence[str], as_json: bool, every: float | None) -> int:
    """Print where the runs stand; 2 when one of them cannot be read, which keeps no other from being shown.

    With ``every`` again and again in so many seconds, as long as one of them is running.
    """
    if every is not None and not is_number(every, 0, open_low=True):
        raise UsageError(f"--watch {every:g} is not allowed: give the seconds between two looks, finite and above 0.")
    out = console()
    while True:
        found, errors = _look(paths)
        if every is not None and out.is_terminal and not as_json:
            out.clear()
        if as_json:
            print(json.dumps({"runs": found}, indent=2, allow_nan=False), flush=True)
        else:
            _show(out, [run for run in found if "error" not in run])
        for error in errors:
            print(paragraph(error), file=sys.stderr)
        if every is None or not any(run.get("status") == "running" for run in found):
            return 2 if errors else 0
        time.sleep(every)


def _look(paths: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """The runs in the order given; of one that cannot be read its path and why."""
    found, errors = [], []
    for path in paths:
        try:
            found.append(standing(open_run(path)))
        except (HpcoptError, OSError) as error:
            found.append({"path": path, "error": str(error)})
            errors.append(str(error))
    return found, errors


def _show(out: Console, runs: Sequence[Mapping[str, Any]]) -> None:
    if len(runs) == 1:
        out.print(_alone(runs[0]))
    elif runs:
        out.print(table(TITLES, [_row(run) for run in runs], keep=4))
        for run in runs:
            for note in _notes(run):
                out.print(f"{escape(run['run'])}: {note}")


def _row(run: Mapping[str, Any]) -> list[str]:
    planned, slow, saved = run["planned"] or {}, run["slowest_rank"], run["checkpoint"]
    running = run["status"] == "running"
    return [
        escape(run["run"]),
        f"[{colour_of(run['status'])}]{run['status']}[/]",
        _of(whole(run["iterations"]), whole(planned.get("iterations")), "/"),
        _of(number(run["epochs"]), number(planned.get("epochs")), "/"),
        number(run["loss"]),
        share(run["evaluation"]["test_accuracy"]),
        number(run["rate"]) if running else NONE,
        duration(run["remaining_seconds"]),
        f"{slow['rank']} ({slow['others_wait']:.0%})" if slow else NONE,
        duration(saved["age_seconds"]) if saved else NONE,
        duration(run["last_sign_seconds"]) if running else NONE,
    ]


def _alone(run: Mapping[str, Any]) -> Table:
    planned, slow, saved = run["planned"] or {}, run["slowest_rank"], run["checkpoint"]
    rows = [
        ("run", f"[bold]{escape(run['run'])}[/]  [dim]{escape(run['path'])}[/]"),
        ("status", f"[{colour_of(run['status'])}]{run['status']}[/]{_process(run)}"),
        (
            "done",
            f"iteration {_of(whole(run['iterations']), whole(planned.get('iterations')), ' of ')}, "
            f"epoch {_of(number(run['epochs']), number(planned.get('epochs')), ' of ')}",
        ),
        ("loss", _losses(run)),
    ]
    if run["rate"]:
        rows.append(("rate", f"{number(run['rate'])} iterations a second of training{_end(run)}"))
    if slow:
        rows.append(
            ("slowest rank", f"{slow['rank']}  [dim]the others wait {slow['others_wait']:.0%} of their time[/]")
        )
    if saved:
        ago = "" if saved["age_seconds"] is None else f", {duration(saved['age_seconds'])} ago"
        rows.append(("saved", f"after iteration {whole(saved['step'])}{ago}"))
    return grid([*rows, *(("note", note) for note in _notes(run))])


def _process(run: Mapping[str, Any]) -> str:
    """What a run that is going on is about, where, and when it last wrote something."""
    if run["status"] != "running":
        return ""
    process = run["process"]
    where = "" if process["host"] is None else f"process {process['pid']} on {process['host']}"
    job = f", job {process['job']}" if process["job"] else ""
    doing = f": {escape(run['doing'])}" if run["doing"] else ""
    return f"{doing}  [dim]{escape(where + job)}, wrote {duration(run['last_sign_seconds'])} ago[/]"


def _losses(run: Mapping[str, Any]) -> str:
    looked = run["evaluation"]
    known = (("train", "train_loss", number), ("test", "test_loss", number), ("test accuracy", "test_accuracy", share))
    parts = [f"{name} {show(looked[key])}" for name, key, show in known if looked[key] is not None]
    after = f"  [dim]after iteration {whole(looked['iteration'])}: {', '.join(parts)}[/]" if parts else ""
    return f"{number(run['loss'])} on the latest batch{after}"


def _end(run: Mapping[str, Any]) -> str:
    if run["remaining_seconds"] is None:
        return ""
    to_go = f"; {duration(run['remaining_seconds'])} to go"
    if run["estimated_end"] is None:
        return to_go
    return f"{to_go}, until {datetime.fromisoformat(run['estimated_end']).astimezone():%Y-%m-%d %H:%M:%S}"


def _notes(run: Mapping[str, Any]) -> Iterator[str]:
    """Whole sentences about what is not as usual."""
    if run["status"] in ("failed", "diverged", "saved") and run["stop_reason"]:
        yield escape(run["stop_reason"])
    if run["silent"]:
        ago = duration(run["last_sign_seconds"])
        unknown = "" if run["alive"] else " Its host is another one: from here nobody can see whether it still runs."
        yield f"[yellow]It has written nothing for {ago}.[/]{unknown} {escape(run['silence'] or '')}".rstrip()
    if (asked := run["stopping"]) is not None:
        when = "when it is next saved" if asked["after_checkpoint"] else "at the end of the iteration"
        what, by = ("end", f" by {asked['by']}, {asked['when']}") if asked["ends"] else ("save and stop", "")
        yield escape(f"It was asked to {what} {when}{by}.")


def _of(done: str, planned: str, between: str) -> str:
    return done if planned == NONE else f"{done}{between}{planned}"
