"""Strong and weak scaling of the methods, and what the time of their steps goes into.

    python benchmarks/scaling/run.py [--ranks 1 2 4 8] [--methods sgd apts ...] [--output FILE.md]

Strong: the same job on more ranks, 784-128-10 on 4,000 images of mnist-5k. Weak: as many images a rank on any number of
ranks, and batches that grow with them. One thread a rank. Seconds a step are of plain runs; a second run of every job,
with ``debug.barriers``, tells the wait for other ranks from the exchange of data (docs/record.md). Beside FILE.md the
same figures are drawn in FILE.png. About three minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, table, write_report
from benchmarks.scaling._jobs import ran
from benchmarks.scaling._split import Split, split, strong, weak

IMAGES, MOST = 4000, 8
"""Of the strong job, and the number of ranks at which the weak one is as large."""


class Method(NamedTuple):
    """Settings of a job, its steps, and the part of the images that is a batch."""

    settings: tuple[str, ...]
    steps: int
    batch: float = 1.0


METHODS = {
    "sgd": Method(("solver.name=sgd", "solver.learning_rate=0.1", "solver.momentum=0.9"), 80, 0.25),
    "apts": Method(("solver.name=apts",), 6),
    "newton": Method(("solver.name=newton",), 6),
    "nlcg": Method(("solver.name=nlcg",), 10),
    "slimtrain": Method(("solver.name=slimtrain", "loss.name=squared"), 40, 0.25),
}
KINDS = {"strong": strong, "weak": weak}


class Row(NamedTuple):
    """One method on one number of ranks: seconds a step of the plain run, the split of the other, bytes a step."""

    kind: str
    method: str
    ranks: int
    seconds: float
    parts: Split
    bytes: float


def job(method: str, images: int, barriers: bool) -> list[str]:
    """Settings of one run."""
    chosen = METHODS[method]
    batch = f"data.batch={round(chosen.batch * images)}" if chosen.batch < 1 else "data.batch=full"
    general = [f"run.iterations={chosen.steps}", "run.evaluate_every=1000000", f"data.limit={images}", batch]
    return [*chosen.settings, *general, f"debug.barriers={str(barriers).lower()}"]


def images_of(kind: str, ranks: int) -> int:
    """Training images of a job."""
    return IMAGES if kind == "strong" else ranks * IMAGES // MOST


def plan(methods: Iterable[str], ranks: int) -> dict[str, list[str]]:
    """All runs on a number of ranks; where the weak job is the strong one, it runs once."""
    sizes = sorted({images_of(kind, ranks) for kind in KINDS})
    return {
        _name(method, images, barriers): job(method, images, barriers)
        for method in methods
        for images in sizes
        for barriers in (False, True)
    }


def _name(method: str, images: int, barriers: bool) -> str:
    return f"{method}-{images}-{'barriers' if barriers else 'plain'}"


def rows(runs: Mapping[int, Mapping[str, Any]], methods: Sequence[str]) -> list[Row]:
    """The figures, from what was told of the runs of each number of ranks."""
    found = []
    for kind in KINDS:
        for method in methods:
            for ranks, told in runs.items():
                images = images_of(kind, ranks)
                plain, apart = (told[_name(method, images, barriers)] for barriers in (False, True))
                seconds, moved = split(plain).step, plain["communication"]["bytes"] / plain["iterations"]
                found.append(Row(kind, method, ranks, seconds, split(apart), moved))
    return found


def lines(kind: str, found: Sequence[Row], cores: int) -> list[str]:
    """The table of strong or of weak scaling."""
    mine = [row for row in found if row.kind == kind]
    alone = {row.method: row.seconds for row in mine if row.ranks == 1}
    cells = []
    for row in mine:
        gain = KINDS[kind](alone[row.method], row.seconds, row.ranks, cores)
        parts = row.parts
        cells.append(
            [
                row.method,
                f"{row.ranks}" + (f" on {cores} cores" if row.ranks > cores else ""),
                f"{1e3 * row.seconds:.1f}",
                f"{gain.speed:.2f}",
                f"{100 * gain.of_possible:.0f} %",
                *(f"{1e3 * each:.1f}" for each in parts[:3]),
                f"{parts.evaluation:.2f}",
                f"{parts.files:.2f}",
                f"{row.bytes / 2**20:.2f}",
            ]
        )
    speed = "speed-up" if kind == "strong" else "speed-up in samples a second"
    head = ["method", "ranks", "ms a step", speed, "of what the cores allow", "computing", "communication"]
    head += ["waiting for others", "evaluation, s a run", "files, s a run", "MiB a step"]
    return table(head, cells)


def draw(found: Sequence[Row], cores: int, path: Path) -> None:
    """Bars of the time of a step by method and ranks, split in its parts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(row.method for row in found))
    figure = Figure(figsize=(3 * len(methods), 6), layout="constrained")
    FigureCanvasAgg(figure)
    for line, kind in enumerate(KINDS):
        for column, method in enumerate(methods):
            axes = figure.add_subplot(len(KINDS), len(methods), line * len(methods) + column + 1)
            mine = [row for row in found if (row.kind, row.method) == (kind, method)]
            bottom = [0.0] * len(mine)
            for name in ("computing", "communication", "waiting"):
                heights = [1e3 * getattr(row.parts, name) for row in mine]
                bars = axes.bar([str(row.ranks) for row in mine], heights, bottom=bottom, label=name)
                for bar, row in zip(bars, mine, strict=True):
                    bar.set_alpha(1.0 if row.ranks <= cores else 0.5)
                bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
            axes.set_title(f"{method}, {kind}", fontsize=10)
            axes.set_xlabel(f"ranks on {cores} cores (pale: taking turns)", fontsize=8)
            axes.set_ylabel("ms a step" if column == 0 else "")
            if line == column == 0:
                axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def report(found: Sequence[Row], cores: int, told: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Everything below the head of the file."""
    network = "; ".join(
        f"{ranks} ranks: 8 B in {1e6 * small:.0f} us, 256 KiB in {1e3 * large:.2f} ms"
        for ranks, (small, large) in ((ranks, each["allreduce"].values()) for ranks, each in told.items())
        if ranks > 1
    )
    about = (
        f"{told[1]['library']}; 784-128-10 on mnist-5k, one thread a rank, {cores} cores for this job: on more ranks "
        "than cores they take turns, and the speed-up is at most the number of cores. Milliseconds are means over "
        "steps and ranks. The three parts are of a run with a barrier before every call that blocks, whose steps are "
        "longer by that; files are the record and one checkpoint at the end. Allreduce: "
        f"{network or 'not needed'}. Load average at the end: {os.getloadavg()[0]:.1f}."
    )
    text = [about, ""]
    for kind, what in (
        ("strong", f"{IMAGES:,} images on any number of ranks"),
        ("weak", f"{IMAGES // MOST} images a rank"),
    ):
        text += [f"## {kind.capitalize()} scaling: {what}", "", *lines(kind, found, cores), ""]
    return text


def main() -> None:
    """Run the jobs on each number of ranks, print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8], choices=range(1, MOST + 1))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    numbers = sorted({1, *options.ranks})
    told = {ranks: ran(["mpirun", "-n", str(ranks)], plan(options.methods, ranks)) for ranks in numbers}
    found = rows({ranks: each["runs"] for ranks, each in told.items()}, options.methods)
    text = report(found, cores, told)
    print("\n".join(text))
    if options.output:
        text += [f"![Time of a step by its parts]({options.output.with_suffix('.png').name})"]
        command = f"python benchmarks/scaling/run.py{spelled(options)}"
        write_report(options.output, "Strong and weak scaling", command, text)
        draw(found, cores, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
