"""One picture a set: what is learnt by work and by seconds, of the first seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.compare.problems import Problem
from benchmarks.compare.report import Outcome
from hpcopt.analysis.plot import COLOURS, STYLE

AXES = {"gradient_equivalents": "gradient equivalents", "seconds": "seconds of training"}


def draw(file: Path, name: str, problem: Problem, found: Sequence[Outcome]) -> None:
    """Write the picture of a set: methods of hpcopt as lines, others at their best rate dashed."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "figure.dpi": 80}):
        figure = Figure(figsize=(10, 4), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (column, label) in zip(panels, AXES.items(), strict=True):
            for place, outcome in enumerate(found):
                run = outcome.runs[outcome.best][0]
                rows = [row for row in run.history if 0 < row["gradient_equivalents"] <= problem.budget * (1 + 1e-9)]
                values = [math.nan if row[problem.figure] is None else 100 * row[problem.figure] for row in rows]
                title = outcome.title + (f", {outcome.best:g}" if outcome.tuned else "")
                style = "--" if outcome.tuned else "-"
                axes.plot([row[column] for row in rows], values, style, color=COLOURS[place % 8], label=title)
            axes.set_xlabel(label)
        tops = [100 * outcome.reached(problem, outcome.best) for outcome in found]
        top = max(filter(math.isfinite, tops))
        panels[0].set_ylim(top - (60 if problem.regression else 25), top + 2)
        panels[0].set_ylabel("explained variance in %" if problem.regression else "test accuracy in %")
        panels[0].set_title(name)
        panels[1].set_xscale("log")
        panels[1].legend(fontsize=7.5)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file)
