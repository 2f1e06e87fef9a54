"""What a person sees while a run is going, and the table at its end. Rank 0 only."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from hpcopt.checkpoint.folder import FOLDER
from hpcopt.solvers.solver import StopReason
from hpcopt.train.protocol import Listener, Result
from hpcopt.train.tolerated import Tolerated

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 3.0


class TerminalProgress:
    """A bar with the latest figures, for a terminal; ``total`` is in the unit "iteration" or "epoch"."""

    seldom = True

    def __init__(self, console: Console, total: float, unit: str = "iteration") -> None:
        self._unit = unit
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.12g}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
        )
        self._task = self._progress.add_task("training", total=total, figures="")
        self._progress.start()

    def iteration(self, **columns: Any) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=columns[self._unit])

    def evaluation(self, **columns: Any) -> None:
        """Show the figures of the evaluation, and how far the run is."""
        self._progress.update(self._task, completed=columns[self._unit], figures=figures(columns))

    def rank_times(
        self, iteration: int, step: Sequence[float], waited: Sequence[float], others: Sequence[float]
    ) -> None:
        """Not shown."""

    def close(self) -> None:
        """Leave the last state of the bar on the screen."""
        self._progress.stop()


class Display(Listener, Protocol):
    """A listener that shows what it hears."""

    def close(self) -> None:
        """Show the last state and stop."""


class Harmless(Tolerated):
    """A display whose failure is logged and ends the display, not the run: a terminal may close, a pipe may break."""

    def start(self, make: Callable[[], Display]) -> None:
        """Make the display and pass everything on to it."""
        self.attempt(lambda: setattr(self, "_listener", make()))

    def close(self) -> None:
        """Stop the display."""
        self._tell("close", {})
        self._listener = None

    def attempt(self, show: Callable[[], object]) -> None:
        """Do something that shows something."""
        try:
            show()
        except Exception as error:
            _say_off(error)

    def _failed(self, listener: Listener, error: Exception) -> None:
        """The display is off."""
        _say_off(error)
        with contextlib.suppress(Exception):
            cast(Display, listener).close()


def _say_off(error: Exception) -> None:
    logger.warning("The display of the run failed and is off: %s: %s.", type(error).__name__, error)


class PlainProgress:
    """A line every few seconds, without control characters, for batch logs and pipes; ``total`` as for a terminal."""

    seldom = True

    def __init__(self, console: Console, total: float, unit: str = "iteration") -> None:
        self._console = console
        self._ends = {unit: f"/{total:.12g}"}
        self._unprinted: dict[str, Any] = {}
        self._printed = -math.inf

    def iteration(self, **columns: Any) -> None:
        """Print a line when the last one is a few seconds old."""
        if time.monotonic() - self._printed >= SECONDS_BETWEEN_LINES:
            self._line(columns["iteration"], columns["epoch"], columns["seconds"], f"loss {columns['loss']:.6g}")

    def evaluation(self, **columns: Any) -> None:
        """Print the figures of the evaluation when the last line is a few seconds old, and always the first."""
        self._unprinted = columns
        if columns["iteration"] == 0 or time.monotonic() - self._printed >= SECONDS_BETWEEN_LINES:
            self.close()

    def rank_times(
        self, iteration: int, step: Sequence[float], waited: Sequence[float], others: Sequence[float]
    ) -> None:
        """Not shown."""

    def close(self) -> None:
        """Print the figures of the last evaluation, unless they stand there already."""
        columns, self._unprinted = self._unprinted, {}
        if columns:
            self._line(columns["iteration"], columns["epoch"], columns["seconds"], figures(columns))

    def _line(self, iteration: int, epoch: float, seconds: float, text: str) -> None:
        self._printed = time.monotonic()
        steps = f"iteration {iteration:>6}{self._ends.get('iteration', '')}"
        epochs = f"epoch {epoch:8.2f}{self._ends.get('epoch', '')}"
        self._console.print(f"{steps}  {epochs}  {seconds:8.1f} s  {text}", highlight=False, soft_wrap=True)


def figures(columns: dict[str, Any]) -> str:
    """The figures of one evaluation in a line; those that do not apply are left out."""
    known = (
        ("train loss", columns["train_loss"], "{:.4g}"),
        ("test loss", columns["test_loss"], "{:.4g}"),
        ("test accuracy", columns["test_accuracy"], "{:.2%}"),
        ("explained variance", columns["test_explained_variance"], "{:.4f}"),
    )
    return "  ".join(f"{name} {form.format(value)}" for name, value, form in known if not math.isnan(value))


def final_table(result: Result, title: str) -> Table:
    """Start, end and best point of a run side by side."""
    # As text, since a name may hold brackets, which rich would read as markup.
    heading = Text(title, style="italic")
    table = Table(title=heading, caption=result.stop.sentence, title_justify="left", caption_justify="left")
    table.add_column("")
    points = (("start", result.initial, 0.0), ("end", result.final, result.epochs))
    for name, _, epoch in (*points, ("best", result.best, result.best_epoch)):
        table.add_column(f"{name} (epoch {epoch:.4g})", justify="right")
    rows = (
        ("train loss", "train_loss", "{:.5g}"),
        ("test loss", "test_loss", "{:.5g}"),
        ("train accuracy", "train_accuracy", "{:.2%}"),
        ("test accuracy", "test_accuracy", "{:.2%}"),
        ("explained variance", "test_explained_variance", "{:.4f}"),
    )
    for label, field, form in rows:
        values = [getattr(metrics, field) for metrics in (result.initial, result.final, result.best)]
        if not all(math.isnan(value) for value in values):
            table.add_row(label, *(form.format(value) for value in values))
    return table


def last_lines(result: Result, directory: Path) -> list[str]:
    """What stands under the table: the checkpoints and what they cost, the run directory, and how to go on."""
    lines = [f"run directory: {directory}"]
    if result.saved or result.not_saved:
        share, failed = result.share_saving, ""
        if result.not_saved:
            failed = f"; {result.not_saved} could not be saved, see {directory / 'log'}"
        count = "1 checkpoint" if result.saved == 1 else f"{result.saved} checkpoints"
        lines.append(f"checkpoints: saved {count} in {directory / FOLDER}, {share:.1%} of the time{failed}")
    if result.resumed_from == result.iterations:
        lines.append("There was nothing left to do: the run had come to its end before.")
    if result.stop in (StopReason.SAVED, StopReason.STOPPED):
        lines.append(f"It is saved after iteration {result.iterations}; the same command goes on from there.")
    return lines
