"""``hpcopt compare RUN...``: the same columns for all runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hpcopt.analysis.compare import compare as compared
from hpcopt.analysis.history import open_run
from hpcopt.cli.format import NONE, console, in_bytes, number, share, table, whole

BUDGETS = {
    "epochs": lambda amount: f"{number(amount)}\nepochs",
    "gradient_equivalents": lambda amount: f"{number(amount)}\ngrad. equiv.",
    "seconds": lambda amount: f"{number(amount)}\nseconds",
    "bytes": lambda amount: f"{in_bytes(amount)}\nby rank 0",
}
FIGURES = (
    ("test accuracy", "test_accuracy", share),
    ("test loss", "test_loss", number),
    ("train loss", "train_loss", number),
)


def compare(runs: Sequence[str], as_json: bool) -> None:
    """Print the comparison of runs, as JSON or as tables."""
    result = compared([open_run(run) for run in runs])
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
        return
    out = console()
    out.print(_costs(result["runs"]))
    if result["equal"]:
        out.print(_points(result["runs"]))
    _print_equal(out, result["equal"])
    for name, values in result["differences"].items():
        out.print(f"[yellow]The runs differ in {name}:[/] {escape(', '.join(map(str, values)))}")


def _costs(runs: Sequence[Mapping[str, Any]]) -> Table:
    titles = ["run", "status", "solver", "ranks", "epochs", "grad.\nequiv.", "seconds", "bytes", "steps"]
    rows = [
        [
            escape(run["run"]),
            run["status"],
            escape(run["solver"] or NONE),
            whole(run["ranks"]),
            number(run["epochs"]),
            number(run["gradient_equivalents"]),
            number(run["seconds"]),
            in_bytes(run["bytes"]),
            f"{whole(run['accepted'])}+{whole(run['rejected'])}",
        ]
        for run in runs
    ]
    return table(titles, rows)


def _points(runs: Sequence[Mapping[str, Any]]) -> Table:
    titles = ["run"]
    for which in ("final", "best"):
        titles += [f"{which}\n{name}" for name in ("train loss", "test loss", "accuracy", "expl. var.")]
    rows = [
        [escape(run["run"]), *_values(run["final"]), *_values(run["best"]), number(run["best"]["epoch"])]
        for run in runs
    ]
    return table([*titles, "best\nepoch"], rows)


def _print_equal(out: Console, equal: Mapping[str, Any]) -> None:
    """One column a budget; of the figures the first that all runs have."""
    spent = {budget: found for budget, found in equal.items() if found["budget"] > 0}
    if not spent:
        return
    known = [figure for figure in FIGURES if _known(figure[1], spent)]
    if not known:
        return
    title, name, show = known[0]
    labels = [escape(run["run"]) for run in next(iter(spent.values()))["runs"]]
    columns = [[show(run[name]) for run in found["runs"]] for found in spent.values()]
    rows = [[label, *(column[place] for column in columns)] for place, label in enumerate(labels)]
    out.print(f"[bold]Best {title} when all have spent the same[/] [dim](--json has the other figures)[/]")
    out.print(table(["run", *(BUDGETS[budget](found["budget"]) for budget, found in spent.items())], rows))


def _known(name: str, spent: Mapping[str, Any]) -> bool:
    return all(run[name] is not None for found in spent.values() for run in found["runs"])


def _values(found: Mapping[str, Any]) -> list[str]:
    return [
        number(found["train_loss"]),
        number(found["test_loss"]),
        share(found["test_accuracy"]),
        number(found["test_explained_variance"]),
    ]
