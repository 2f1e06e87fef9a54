"""The same job on several hosts, over networks of different rates: the methods until the same test accuracy.

    python benchmarks/scaling/hosts.py [--hosts 2] [--rates 1000 100 10] [--delay 1] [--output FILE.md]
    python benchmarks/scaling/hosts.py --rates 100 --run "python -m hpcopt doctor"

The hosts are network namespaces of this machine (benchmarks/scaling/_network.py); where it does not allow them the
script says so and does nothing. 784-128-10 on 4,000 images of mnist-5k, one thread a rank. SGD has a rate and a
momentum tuned by hand, on small and on large batches; the other methods have no key tuned. Rates are megabits a
second that a host sends; the delay is of each packet, in milliseconds, where the kernel has netem. About three minutes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, table, write_report
from benchmarks.scaling._jobs import ENVIRONMENT, ran
from benchmarks.scaling._network import Hosts, Link, NotPossibleError
from benchmarks.scaling._split import split

METHODS = {
    "sgd, batch 256": ("solver.name=sgd", "solver.learning_rate=0.05", "solver.momentum=0.9", "data.batch=256"),
    "sgd, batch 2000": ("solver.name=sgd", "solver.learning_rate=0.2", "solver.momentum=0.9", "data.batch=2000"),
    "apts": ("solver.name=apts", "data.batch=full"),
    "newton": ("solver.name=newton", "data.batch=full"),
    "nlcg": ("solver.name=nlcg", "data.batch=full"),
    "slimtrain": ("solver.name=slimtrain", "loss.name=squared", "data.batch=256"),
}
BASELINES = ("sgd, batch 256", "sgd, batch 2000")


class Row(NamedTuple):
    """One method on one network."""

    method: str
    reached: bool
    accuracy: float
    steps: int
    seconds: float
    communication: float
    bytes: int
    calls: int


def plan(methods: Iterable[str], accuracy: float, seconds: float) -> dict[str, list[str]]:
    """The jobs, each until the accuracy is reached or its time is over."""
    ends = ["run.iterations=100000", f"run.stop.test_accuracy={accuracy}", f"run.stop.seconds={seconds}"]
    return {method: [*METHODS[method], *ends] for method in methods}


def row(method: str, told: Mapping[str, Any], accuracy: float) -> Row:
    """From what inspect tells: seconds of all steps, and of these in communication, means of the ranks."""
    parts, steps = split(told), told["iterations"]
    found, sent = told["final"]["test_accuracy"], told["communication"]
    seconds, exposed = steps * parts.step, steps * (parts.communication + parts.waiting)
    return Row(method, found >= accuracy, found, steps, seconds, exposed, sent["bytes"], sent["calls"])


def lines(rows: Sequence[Row]) -> list[str]:
    """The table of one network, and what of it is to be said."""
    base = min((row.seconds for row in rows if row.method in BASELINES and row.reached), default=None)
    cells = []
    for each in rows:
        ratio = "-" if base is None or not each.reached else f"{each.seconds / base:.2f}"
        seconds = f"{each.seconds:.2f}" if each.reached else f"not in {each.seconds:.0f}: {100 * each.accuracy:.1f} %"
        share = f"{100 * each.communication / each.seconds:.0f} %"
        cells.append([each.method, seconds, ratio, f"{each.steps}", f"{each.communication:.2f}", share])
        cells[-1] += [f"{each.bytes / 2**20:.1f}", f"{each.calls}"]
    head = ["method", "seconds", "of the faster SGD's", "steps", "communication, s", "share", "MiB a rank", "calls"]
    return [*table(head, cells), "", verdict(rows, base)]


def verdict(rows: Sequence[Row], base: float | None) -> str:
    """Who is first, and by how much."""
    there = [row for row in rows if row.reached]
    if not there:
        return "No method reached the accuracy in its time."
    first = min(there, key=lambda row: row.seconds)
    if base is None:
        return f"First: {first.method}; SGD did not reach the accuracy in its time."
    if first.method in BASELINES:
        return f"First: {first.method}, ahead of every other method."
    return f"First: {first.method}, in {first.seconds / base:.2f} of the time of the faster SGD."


def draw(found: Mapping[float, Sequence[Row]], path: Path) -> None:
    """Seconds by rate, one line a method that reached the accuracy."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for method in METHODS:
        points = [(rate, row.seconds) for rate, rows in found.items() for row in rows if row[:2] == (method, True)]
        if points:
            axes.plot(*zip(*points, strict=True), "o--" if method in BASELINES else "o-", label=method)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(list(found), [f"{rate:g}" for rate in found])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(alpha=0.3)
    axes.set_xlabel("megabits a second")
    axes.set_ylabel("seconds of training until the accuracy")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def measure(rate: float, options: argparse.Namespace) -> tuple[list[Row], str]:
    """All methods over one network, and a sentence on it."""
    link = Link(rate, options.delay)
    with Hosts(options.hosts, link) as hosts:
        jobs = plan(options.methods, options.accuracy, options.seconds)
        told = ran(hosts.launcher(options.ranks_a_host), jobs, hosts.environment)
        remark = hosts.remark
    if len(set(told["hosts"])) != options.hosts:
        raise SystemExit(f"The ranks were on {', '.join(sorted(set(told['hosts'])))}, not on {options.hosts} hosts.")
    small, large = told["allreduce"].values()
    library = told["library"]
    if large < 0.5 * link.seconds(1 << 18):
        raise SystemExit(
            f"{library} takes {1e3 * large:.2f} ms for an allreduce of 256 KiB, less than {rate:g} Mbit/s allow: its "
            "messages do not go over the network. Choose its transport over TCP."
        )
    delay = "" if remark or not options.delay else f", {options.delay:g} ms a packet"
    times = f"an allreduce of 8 B takes {1e3 * small:.2f} ms, of 256 KiB {1e3 * large:.1f} ms"
    rows = [row(method, each, options.accuracy) for method, each in told["runs"].items()]
    return rows, f"{library}, {rate:g} Mbit/s a host{delay}: {times}. {remark}".strip()


def run_there(command: str, options: argparse.Namespace) -> int:
    """A command of the user's own on the hosts."""
    with Hosts(options.hosts, Link(options.rates[0], options.delay)) as hosts:
        words = [*hosts.launcher(options.ranks_a_host), *shlex.split(command)]
        return subprocess.run(words, env=os.environ | ENVIRONMENT | hosts.environment, check=False).returncode


def main() -> int:
    """Measure over each network, print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--ranks-a-host", type=int, default=1)
    parser.add_argument("--rates", type=float, nargs="+", default=[1000.0, 100.0, 10.0], help="Mbit/s")
    parser.add_argument("--delay", type=float, default=1.0, help="ms")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--accuracy", type=float, default=0.92)
    parser.add_argument("--seconds", type=float, default=90.0, help="of a run at most")
    parser.add_argument("--run", help="a command to start on all hosts instead")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    try:
        if options.run:
            return run_there(options.run, options)
        found = {rate: measure(rate, options) for rate in options.rates}
    except NotPossibleError as error:
        print(f"Skipped: {error}")
        return 0
    report(found, options)
    return 0


def report(found: Mapping[float, tuple[list[Row], str]], options: argparse.Namespace) -> None:
    """Print, and write where asked."""
    cores, ranks = len(os.sched_getaffinity(0)), options.hosts * options.ranks_a_host
    turns = " and take turns" if ranks > cores else ""
    text = [
        f"784-128-10 on mnist-5k until {100 * options.accuracy:g} % of the test set, {options.hosts} hosts of "
        f"{options.ranks_a_host} rank(s), which share {cores} cores{turns}; at most {options.seconds:g} s a run. "
        "Seconds are those of all steps, without evaluation; communication is the part in which a rank could do "
        f"nothing else. Load average at the end: {os.getloadavg()[0]:.1f}.",
        "",
    ]
    for rate, (rows, about) in found.items():
        text += [f"## {rate:g} Mbit/s", "", about, "", *lines(rows), ""]
    print("\n".join(text))
    if options.output:
        picture = options.output.with_suffix(".png")
        text += [f"![Seconds by rate]({picture.name})"]
        command = f"python benchmarks/scaling/hosts.py{spelled(options)}"
        write_report(options.output, "Methods over networks of different rates", command, text)
        draw({rate: rows for rate, (rows, _) in found.items()}, picture)


if __name__ == "__main__":
    sys.exit(main())
