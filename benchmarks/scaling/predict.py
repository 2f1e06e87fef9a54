"""What ``hpcopt predict`` says against what runs take, on 1, 2, 4 and 8 ranks, and its curves to 4,096 ranks.

    python benchmarks/scaling/predict.py [--ranks 1 2 4 8] [--methods sgd apts ...] [--output FILE.md]

The machine is measured once, on the largest number of ranks, with one thread a rank; then every job runs on each number
of ranks and is predicted for it. 784-128-10 on mnist-5k. Seconds and calls are means over the iterations of a run after
its first five. Where a method iterates inside a step, the prediction is told how often the run did. Beside FILE.md the
curves are drawn in FILE.png.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, table, write_report
from benchmarks.scaling._jobs import ENVIRONMENT, JOB, ran

if TYPE_CHECKING:
    from hpcopt.analysis.predict import Prediction
    from hpcopt.costs.machine import Machine

FAR = (1, 8, 64, 512, 4096)
"""Ranks of the curves."""

CUT = ("parallel.layout=variables", "model.init=he")

METHODS: dict[str, tuple[str, ...]] = {
    "sgd": ("solver.name=sgd", "data.batch=1000", "run.iterations=60"),
    "adam": ("solver.name=adam", "data.batch=1000", "run.iterations=60"),
    "lbfgs": ("solver.name=lbfgs", "run.iterations=20"),
    "trust_region": ("solver.name=trust_region", "run.iterations=20"),
    "apts": ("solver.name=apts", "run.iterations=11"),
    "nlcg": ("solver.name=nlcg", "run.iterations=20"),
    "newton": ("solver.name=newton", "run.iterations=20"),
    "newton, blocks": ("solver.name=newton", "solver.direction=block", *CUT, "run.iterations=11"),
    "slimtrain": ("solver.name=slimtrain", "loss.name=squared", "data.batch=1000", "run.iterations=40"),
    "sgd, sharded": ("solver.name=sgd", "parallel.state=sharded", "data.batch=1000", "run.iterations=60"),
}
ITERATES = ("lbfgs", "newton, blocks")


class Row(NamedTuple):
    """Seconds a step of one method on one number of ranks, and calls of a step."""

    method: str
    ranks: int
    predicted: float
    measured: float
    calls: tuple[float, float]

    @property
    def error(self) -> float:
        """Relative, of the prediction."""
        return abs(self.predicted / self.measured - 1)


def settings(method: str) -> list[str]:
    """Of the runs of a method."""
    return [*METHODS[method], "run.evaluate_every=1000000", "data.limit=4000"]


def measured(ranks: int, folder: Path) -> Path:
    """The machine, measured on so many ranks."""
    path = folder / "machine.json"
    command = ["mpirun", "-n", str(ranks), sys.executable, "-m", "hpcopt", "doctor", "--measure", "--output", str(path)]
    subprocess.run(command, env=ENVIRONMENT | dict(os.environ), stdout=subprocess.DEVNULL, check=False)
    if not path.exists():
        raise SystemExit(f"{' '.join(command)} measured nothing")
    return path


def trials(method: str, told: Mapping[str, Any], ranks: int) -> float | None:
    """Inner iterations of a step of a run, on a rank where each has its own; None where the default holds."""
    if method not in ITERATES:
        return None
    count = float(told["work"]["inner_iterations"]) / told["iterations"]
    return count / ranks if "blocks" in method else count


def compared(told: Mapping[int, Mapping[str, Any]], machine: Machine) -> list[Row]:
    """Every run beside its prediction."""
    from hpcopt.analysis.predict import predict, subject_of
    from hpcopt.config import parse_job

    found = []
    for method in next(iter(told.values())):
        subject = subject_of(parse_job(JOB, settings(method)))
        for ranks, runs in told.items():
            run = runs[method]
            said = predict(subject, machine, ranks, max(told), trials(method, run, ranks))
            calls = said.calls, run["middle"]["calls"]
            found.append(Row(method, ranks, said.seconds, run["middle"]["seconds"], calls))
    return found


def far(methods: Sequence[str], machine: Machine) -> dict[str, list[Prediction | None]]:
    """Predictions of the same jobs for many ranks, one a core of hosts like this; None where they do not fit."""
    from hpcopt.analysis.predict import predict, subject_of
    from hpcopt.config import parse_job
    from hpcopt.errors import UsageError

    found: dict[str, list[Prediction | None]] = {}
    for method in methods:
        subject, curve = subject_of(parse_job(JOB, settings(method))), found.setdefault(method, [])
        for ranks in FAR:
            try:
                curve.append(predict(subject, machine, ranks, machine.cores))
            except UsageError:
                curve.append(None)
    return found


def lines(rows: Sequence[Row], curves: Mapping[str, Sequence[Prediction | None]], machine: Machine) -> list[str]:
    """Both tables and what they rest on."""
    from hpcopt.analysis.predict import ASSUMPTIONS

    errors = [row.error for row in rows]
    head = ["method", "ranks", "predicted, ms", "measured, ms", "predicted / measured", "calls predicted", "of the run"]
    several = _median_error([r for r in rows if r.ranks > 1])
    fitting = _median_error([r for r in rows if r.ranks <= machine.cores])
    shared = _median_error([r for r in rows if r.ranks > machine.cores])
    text = [
        f"Median error {100 * median(errors):.0f} %, largest {100 * max(errors):.0f} %, over {len(rows)} runs; on more "
        f"than one rank: {several}, with as many ranks as cores at most: {fitting}, with more: {shared}. Load average "
        f"at the end: {os.getloadavg()[0]:.1f}.",
        "",
        *table(head, [_cells(row, machine.cores) for row in rows]),
        "",
        f"## Up to {FAR[-1]:,} ranks, one for each core of hosts with {machine.cores}",
        "",
        "Milliseconds a step, in brackets the share of communication and the memory of a rank in MiB. The job is as "
        "small as above: it says where each method stops to gain, not what a large job does.",
        "",
        *table(["method", *(f"{ranks:,}" for ranks in FAR)], [_curve(name, curves[name]) for name in curves]),
        "",
    ]
    return [*text, *(f"- {note}" for note in (*ASSUMPTIONS, *sorted(machine.unsure))), ""]


def _cells(row: Row, cores: int) -> list[str]:
    return [
        row.method,
        f"{row.ranks}" + (f" on {cores} cores" if row.ranks > cores else ""),
        *(f"{1e3 * seconds:.2f}" for seconds in (row.predicted, row.measured)),
        f"{row.predicted / row.measured:.2f}",
        *(f"{calls:.1f}" for calls in row.calls),
    ]


def _median_error(rows: Sequence[Row]) -> str:
    return f"{100 * median(row.error for row in rows):.0f} %" if rows else "-"


def _curve(name: str, curve: Sequence[Prediction | None]) -> list[str]:
    def cell(each: Prediction) -> str:
        return f"{1e3 * each.seconds:.2f} ({each.communication / each.seconds:.0%}, {each.memory / 2**20:.1f})"

    return [name, *("-" if each is None else cell(each) for each in curve)]


def draw(rows: Sequence[Row], curves: Mapping[str, Sequence[Prediction | None]], path: Path) -> None:
    """Left the curves with the runs as points, right the share of communication."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from hpcopt.analysis.plot import COLOURS

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    times, shares = figure.subplots(1, 2)
    for number, (name, curve) in enumerate(curves.items()):
        style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "label": name}
        style["linestyle"] = "-" if number < len(COLOURS) else "--"
        known = [each for each in curve if each is not None]
        times.loglog([each.ranks for each in known], [1e3 * each.seconds for each in known], **style)
        shares.semilogx([each.ranks for each in known], [each.communication / each.seconds for each in known], **style)
        mine = [row for row in rows if row.method == name]
        times.plot([row.ranks for row in mine], [1e3 * row.measured for row in mine], "o", color=style["color"], ms=4)
    times.set_title("ms a step: predicted with a core a rank, and runs on this machine (dots)", fontsize=9)
    shares.set_title("share of communication, predicted", fontsize=9)
    for axes in (times, shares):
        axes.set_xlabel("ranks")
        axes.grid(alpha=0.3)
    shares.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, run, predict, print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = measured(max(options.ranks), Path(folder))
        plan = {method: settings(method) for method in options.methods}
        told = {ranks: ran(["mpirun", "-n", str(ranks)], plan)["runs"] for ranks in sorted(options.ranks)}
        # This process touches MPI only now, after the last job that it starts.
        from hpcopt.costs.machine import read

        machine, rates = read(path), json.loads(path.read_text(encoding="utf-8"))
    rows = compared(told, machine)
    curves = far(options.methods, machine)
    text = lines(rows, curves, machine)
    print("\n".join(text))
    if options.output:
        text += ["Rates, as `hpcopt doctor --measure` found them:", "", "```", json.dumps(rates["rates"]), "```", ""]
        text += [f"![Time of a step on up to {FAR[-1]} ranks]({options.output.with_suffix('.png').name})"]
        command = f"python benchmarks/scaling/predict.py{spelled(options)}"
        write_report(options.output, "Predicted and measured time of a step", command, text)
        draw(rows, curves, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
