"""How the commands show numbers and tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

NONE = "-"
"""Shown for what is unknown or does not apply."""

FIVE_DIGITS = 9999.5
"""From here on a rounded number has five digits, which four significant ones would show with an exponent."""

COLOURS = {"finished": "green", "saved": "yellow", "running": "cyan", "diverged": "red", "failed": "red"}


def number(value: float | None) -> str:
    """Four significant digits, without an exponent where that is short."""
    if value is None:
        return NONE
    if value == 0 or 1e-3 <= abs(value) < FIVE_DIGITS:
        return f"{value:.4g}"
    return f"{value:,.0f}" if FIVE_DIGITS <= abs(value) < 1e7 else f"{value:.3e}"


def whole(value: float | None) -> str:
    """A count with separators for thousands."""
    return NONE if value is None else f"{int(value):,}"


def share(value: float | None) -> str:
    """A fraction in percent."""
    return NONE if value is None else f"{100 * value:.2f} %"


def in_bytes(value: float | None) -> str:
    """A number of bytes with a unit of powers of 1024."""
    if value is None:
        return NONE
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(len(units) - 1, int(math.log2(abs(value)) // 10) if abs(value) >= 1 else 0)
    return f"{value:.0f} B" if power == 0 else f"{value / 1024**power:.1f} {units[power]}"


def duration(seconds: float | None) -> str:
    """A time in its two largest units."""
    if seconds is None:
        return NONE
    rest = round(seconds)
    for name, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if rest >= size:
            less = rest % size // part
            return f"{rest // size} {name}" + (f" {less} {smaller}" if less else "")
    return f"{rest} s"


def colour_of(status: str) -> str:
    """The colour a run's status is shown in."""
    return COLOURS.get(status, "default")


def console() -> Console:
    """Standard output; not cut to 80 columns when it goes to a file or a pipe."""
    shown = Console(highlight=False)
    return shown if shown.is_terminal else Console(highlight=False, width=max(shown.width, 160))


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], keep: int = 1) -> Table:
    """A table whose columns, but for the first, are aligned to the right.

    A column in which nothing is known is left out, unless it is one of the first ``keep``.
    """
    rows = list(rows)
    shown = [place for place in range(len(titles)) if place < keep or any(row[place] != NONE for row in rows)]
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1), header_style="bold")
    for place in shown:
        made.add_column(titles[place], justify="left" if place == 0 else "right", no_wrap=True)
    for row in rows:
        made.add_row(*(row[place] for place in shown))
    return made


def grid(rows: Iterable[tuple[str, Any]]) -> Table:
    """Names and values below each other."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, NONE if value is None else str(value))
    return made
