"""``hpcopt plot RUN... -o FILE.png``: one figure of one or more runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpcopt.analysis.history import open_run
from hpcopt.analysis.plot import plot_runs


def plot(runs: Sequence[str], output: Path) -> None:
    """Draw runs into a file."""
    plot_runs([open_run(run) for run in runs], output)
