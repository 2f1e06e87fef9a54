"""One figure of one or more runs: loss, accuracy, radius or step size, and the waiting of each rank."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcopt.analysis.compare import labels_of
from hpcopt.analysis.history import Run
from hpcopt.analysis.summary import best_row, task
from hpcopt.errors import UsageError
from hpcopt.train.run.directory import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333", "#999933")
"""Okabe and Ito, Color Universal Design, 2008 (its yellow, too light for lines, replaced): told apart by everyone."""

STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.labelcolor": "#333333",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.dpi": 150,
    "font.size": 9.5,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "lines.linewidth": 1.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
}

MARKED_POINTS = 30
"""Curves with at most so many points show them."""

LABELLED_RUNS = 4
"""With more runs the numbers at the best points would cover each other."""

MARKED_REJECTIONS = 200
"""Rejected steps are marked when there are at most so many: more would hide the curve."""


def plot_runs(runs: Sequence[Run], output: Path) -> None:
    """Draw runs into an image file, whose format follows from its suffix. It appears whole or not at all.

    Top left the losses, top right what is learnt (accuracy, explained variance, or the gradient norm), below the
    radius or step size and the time the ranks waited.

    Raises:
        UsageError: a run has no evaluation yet, or the file cannot be written.
    """
    empty = [run.name for run in runs if run.evaluations.size == 0]
    if empty:
        raise UsageError(
            f"The run {empty[0]!r} has no evaluation yet, so there is nothing to plot. Wait for its first evaluation "
            "(hpcopt inspect shows it), or leave it out."
        )
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 7.2), layout="constrained")
        FigureCanvasAgg(figure)
        _draw(figure, runs)
        _save(figure, output)


def _save(figure: Figure, output: Path) -> None:
    picture = io.BytesIO()
    try:
        figure.savefig(picture, format=output.suffix[1:])
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, picture.getvalue())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise UsageError(
            f"The figure {output} could not be written: {reason}. Nothing of it is left, and a file of that name is as "
            "it was; give a file on a disk with enough space that this process may write to, with a suffix such as "
            ".png, .pdf or .svg."
        ) from error


def _draw(figure: Figure, runs: Sequence[Run]) -> None:
    loss, score, control, wait = figure.subplots(2, 2).flat
    labels = labels_of(runs)
    column, title = _horizontal(runs)
    _draw_loss(loss, runs, column)
    _draw_score(score, runs, column)
    _draw_control(control, runs)
    for axes in (loss, score):
        axes.set_xlabel(title)
    control.set_xlabel("epochs")
    _draw_wait(wait, runs, labels)
    handles = [_line(place, label) for place, label in enumerate(labels)]
    if len(runs) == 1:
        figure.suptitle(labels[0], x=0.01, ha="left", fontsize=13, fontweight="bold")
    else:
        figure.legend(handles=handles, loc="outside upper left", ncols=min(6, len(runs)))


def _line(place: int, label: str) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=COLOURS[place % len(COLOURS)], linewidth=3, label=label)


def _horizontal(runs: Sequence[Run]) -> tuple[str, str]:
    """Epochs for one run; for several the work, which is fair to methods that do more in an epoch."""
    known = all(np.isfinite(run.evaluations["gradient_equivalents"]).all() for run in runs)
    if len(runs) > 1 and known:
        return "gradient_equivalents", "work in gradient equivalents"
    return "epoch", "epochs"


def _draw_loss(axes: Axes, runs: Sequence[Run], column: str) -> None:
    shown = []
    for place, run in enumerate(runs):
        rows = run.evaluations
        shown += [
            _curve(axes, rows[column], rows["train_loss"], place),
            _curve(axes, rows[column], rows["test_loss"], place, dashed=True),
        ]
    _scale(axes, shown)
    axes.set_title("Loss")
    tested = any(np.isfinite(run.evaluations["test_loss"]).any() for run in runs)
    _explain(axes, [("train", "-"), ("test", "--")] if tested else [("train", "-")])


def _draw_score(axes: Axes, runs: Sequence[Run], column: str) -> None:
    name, title, scale = _score(runs)
    shown = []
    for place, run in enumerate(runs):
        rows = run.evaluations
        shown.append(_curve(axes, rows[column], scale * rows[name], place))
        best = best_row(rows, task(run))
        if best is not None and name != "gradient_norm" and np.isfinite(rows[name][best]):
            point = rows[column][best], scale * rows[name][best]
            axes.plot(*point, "o", ms=8, mfc="none", mew=1.5, color=COLOURS[place % len(COLOURS)])
            if len(runs) <= LABELLED_RUNS:
                words = f"{point[1]:.4g}"
                axes.annotate(words, point, textcoords="offset points", xytext=(0, -14), ha="center", fontsize=8)
    axes.set_title(title)
    if name == "gradient_norm":
        _scale(axes, shown)


def _score(runs: Sequence[Run]) -> tuple[str, str, float]:
    for name, title, scale in (
        ("test_accuracy", "Test accuracy in %, best point marked", 100.0),
        ("test_explained_variance", "Explained variance of the test set, best point marked", 1.0),
        ("train_accuracy", "Train accuracy in %, best point marked", 100.0),
    ):
        if any(np.isfinite(run.evaluations[name]).any() for run in runs):
            return name, title, scale
    return "gradient_norm", "Gradient norm", 1.0


def _draw_control(axes: Axes, runs: Sequence[Run]) -> None:
    """Radius where a run has one, else step size; a run with neither shows the norm of its steps."""
    shown, used, crosses = [], [], False
    for place, run in enumerate(runs):
        rows = run.iterations
        name = next((name for name in ("radius", "step_size") if np.isfinite(rows[name]).any()), "step_norm")
        if rows.size == 0:
            continue
        used.append(name)
        dashed = name != used[0]
        shown.append(_curve(axes, rows["epoch"], rows[name], place, dashed=dashed, marks=False))
        rejected = (rows["accepted"] == 0) & np.isfinite(rows[name])
        if name == "radius" and 0 < np.count_nonzero(rejected) <= MARKED_REJECTIONS:
            crosses = True
            axes.plot(rows["epoch"][rejected], rows[name][rejected], "x", ms=5, color=COLOURS[place % len(COLOURS)])
    words = {"radius": "Trust-region radius", "step_size": "Step size", "step_norm": "Norm of the step"}
    different = list(dict.fromkeys(used))
    axes.set_title(
        " / ".join([words[name] if place == 0 else words[name].lower() for place, name in enumerate(different)])
    )
    _scale(axes, shown)
    if not shown:
        _note(axes, "no iteration yet")
        return
    keys = [(words[name].lower(), "-" if name == different[0] else "--") for name in different]
    _explain(axes, keys if len(keys) > 1 else [], crosses=crosses)


def _draw_wait(axes: Axes, runs: Sequence[Run], labels: Sequence[str]) -> None:
    if len(runs) == 1:
        _draw_ranks(axes, runs[0])
        return
    axes.set_title("Time waited in communication, one dot a rank")
    for place, run in enumerate(runs):
        step, waited = (run.ranks[name].sum(axis=0) for name in ("seconds_step", "seconds_waited"))
        percent = 100 * waited / np.where(step > 0, step, np.inf)
        heights = np.full(percent.size, len(runs) - 1 - place, dtype=float)
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(percent, heights, "o", ms=7, alpha=0.6, mew=0, color=colour)
    axes.set_yticks(
        range(len(runs)),
        [f"{label} ({run.ranks['seconds_step'].shape[1]})" for label, run in zip(labels, runs, strict=True)][::-1],
    )
    axes.set_ylim(-0.6, len(runs) - 0.4)
    axes.set_xlim(0, 1.08 * max(1.0, axes.dataLim.xmax))
    axes.set_xlabel("% of the time in steps (number of ranks in brackets)")


def _draw_ranks(axes: Axes, run: Run) -> None:
    """Bars of the time of each rank, split in computing and waiting."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title("Time in steps of each rank")
    step, waited = (run.ranks[name].sum(axis=0) for name in ("seconds_step", "seconds_waited"))
    if not step.any():
        _note(axes, "no times yet")
        return
    numbers = np.arange(step.size)
    width = 0.75 if step.size <= 64 else 1.0
    waited = np.minimum(waited, step)
    axes.bar(numbers, step - waited, width, color=COLOURS[0], label="computing")
    axes.bar(numbers, waited, width, bottom=step - waited, color=COLOURS[4], label="waiting")
    axes.set_xlabel("rank")
    axes.set_ylabel("seconds")
    axes.grid(False, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylim(0, 1.18 * float(np.max(step)))
    axes.legend(loc="upper right", ncols=2)


def _curve(
    axes: Axes, x: np.ndarray, y: np.ndarray, place: int, dashed: bool = False, marks: bool = True
) -> np.ndarray:
    """Draw what is finite and return it."""
    finite = np.isfinite(x) & np.isfinite(y)
    count = int(np.count_nonzero(finite))
    marker = "o" if (marks and not dashed and count <= MARKED_POINTS) or count == 1 else None
    axes.plot(
        x[finite],
        y[finite],
        "--" if dashed else "-",
        marker=marker,
        ms=3.5,
        alpha=0.75 if dashed else 1.0,
        linewidth=1.3 if dashed else 1.8,
        color=COLOURS[place % len(COLOURS)],
    )
    shown: np.ndarray = y[finite]
    return shown


def _scale(axes: Axes, shown: Sequence[np.ndarray]) -> None:
    """A logarithmic axis when all is positive and spans more than a factor of five."""
    values = np.concatenate([np.empty(0), *shown])
    if values.size and values.min() > 0 and values.max() > 5 * values.min():
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        axes.set_yscale("log")
        decades = np.log10(values.max() / values.min())
        if 1e-3 < values.min() and values.max() < 1e5 and decades < 2.5:
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _explain(axes: Axes, lines: Sequence[tuple[str, Any]], crosses: bool = False) -> None:
    """Say in grey what the kinds of line mean."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color="#555555", linestyle=style, label=words) for words, style in lines]
    if crosses:
        handles.append(Line2D([], [], color="#555555", linestyle="", marker="x", ms=5, label="rejected step"))
    if handles:
        axes.legend(handles=handles, loc="best")


def _note(axes: Axes, words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color="#777777")
