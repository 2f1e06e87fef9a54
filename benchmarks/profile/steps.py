"""What a step of each method spends its processor time on: BLAS, torch's other operators, MPI, the system, Python.

    python benchmarks/profile/steps.py [--sizes tiny large] [--ranks 1 2] [--before DIR] [--output FILE]

A run as ``hpcopt run`` makes it, with its record, its log and its progress. ``perf`` samples the processor time of the
main thread of rank 0 (so that other processes do not count) and says in which library each sample was:

- BLAS: matrix products and the like, within torch or NumPy
- torch: all else in torch's compiled libraries, with its OpenMP: operators, their dispatch, automatic differentiation
- MPI: the MPI library, with its waiting
- system: kernel, C library and loader, whoever called them; memory that is given out and cleared, for instance
- Python: all that is left: the interpreter and what is compiled for it, such as the bindings of torch, NumPy and h5py

So "Python" holds what torch's own modules and bindings take, which any model in torch has: the first row is a step of
gradient descent as one writes it by hand with torch and mpi4py, without norm, checks, record or checkpoints. The tiny
problem has 20 variables and batches of 4 samples, the large one is 784-512-256-10 with batches of 10,000. ``--before``
names another checkout of the package to compare with.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, table, write_report

REPOSITORY = Path(__file__).resolve().parents[2]
BY_HAND = "by hand"
METHODS = {
    BY_HAND: "",
    "sgd": "learning_rate = 0.01",
    "adam": "",
    "lars": "learning_rate = 0.1",
    "apts": "",
    "newton": "",
    "nlcg": "",
    "slimtrain": "",
    "trust_region": "",
    "lbfgs": "",
}
"""What is measured, and the options that have no default which fits both problems."""

LOSSES = dict.fromkeys(("apts", "newton", "nlcg", "trust_region", "lbfgs"), "weight_decay = 0.01")
"""Where it is not the cross-entropy alone: of 4 samples that can be told apart it has no minimum to aim at."""
LOSSES |= {"slimtrain": 'name = "squared"'}

KINDS = ("Python", "BLAS", "torch", "MPI", "system")
HERTZ = 2000
COLUMNS = (
    "Times are processor time of rank 0's main thread, a step; waiting is wall time. An evaluation is one of the loss, "
    "of the gradient or of a curvature product, on a whole batch. Functions called are Python's, of all packages and "
    "of hpcopt, the median of some steps."
)

_BLAS = re.compile(r"mkl_|cblas|openblas|[sd](gem[mv]|dot|syrk|axpy)|dnnl::")
_LIBRARIES = (
    ("torch", re.compile(r"libtorch_cpu|libc10|libgomp|libiomp|libcaffe")),
    ("MPI", re.compile(r"libmpi|libopen-|libpmix|libprrte|libuc[tpsm]|mca_|MPI\.\w+|libevent|libhwloc|libfabric")),
    ("system", re.compile(r"\[kernel|\[vdso|libc[.-]|libm[.-]|ld-linux|libstdc|libpthread|libgcc|\[unknown")),
)


class Size(NamedTuple):
    """A problem: samples, features, classes, hidden widths, the batch, and steps before and in the window."""

    samples: int
    features: int
    classes: int
    widths: list[int]
    batch: int
    first: int
    steps: int
    counted: int


SIZES = {
    "tiny": Size(64, 3, 2, [3], 4, 100, 2000, 50),
    "large": Size(20_000, 784, 10, [512, 256], 10_000, 1, 3, 1),
}


def job(size: Size, method: str, options: str, data: Path) -> str:
    """The job file of a run."""
    steps = size.first + size.steps + size.counted + 1
    return "\n".join(
        [
            f'[run]\ndevice = "cpu"\niterations = {steps}\nevaluate_every = {steps}',
            f'[data]\nsource = "{data}"\ntest = false\nbatch = {size.batch}',
            f'[model]\nname = "mlp"\nwidths = {size.widths}',
            f"[loss]\n{LOSSES.get(method, '')}",
            f'[solver]\nname = "{method}"\n{options}',
        ]
    )


def write_data(size: Size, path: Path) -> None:
    """Random samples of random classes."""
    draw = np.random.default_rng(0)
    inputs = draw.standard_normal((size.samples, size.features), np.float32)
    np.savez(path, x=inputs, y=draw.integers(0, size.classes, size.samples))


def kind(symbol: str, library: str) -> str:
    """To which of ``KINDS`` a sample belongs, by the function and the library that it was in."""
    name = Path(library).name
    if _BLAS.search(symbol) or _BLAS.search(name):
        return "BLAS"
    return next((found for found, pattern in _LIBRARIES if pattern.search(name)), "Python")


def samples(lines: Iterable[str]) -> list[tuple[float, str]]:
    """Time in seconds and kind of every sample in the output of ``perf script -F time,ip,sym,dso``."""
    found = []
    for line in lines:
        if match := re.match(r"\s*([\d.]+):\s+[0-9a-f]+ (.*) \((.*)\)\s*$", line):
            found.append((float(match[1]), kind(match[2], match[3])))
    return found


def measure(size: Size, ranks: int, methods: Sequence[str], package: Path, folder: Path) -> dict[str, Any]:
    """What ``_measure.py`` found, with the samples of each window by kind."""
    folder.mkdir(parents=True)
    write_data(size, folder / "data.npz")
    given = {"first": size.first, "steps": size.steps, "counted": size.counted}
    data = folder / "data.npz"
    jobs = {name: {"job": job(size, name, METHODS[name], data), **given} for name in methods}
    plan = {
        "folder": str(folder),
        "hertz": HERTZ,
        "methods": jobs,
        "by_hand": BY_HAND,
        "data": str(data),
        "batch": size.batch,
    }
    plan["widths"] = [size.features, *size.widths, size.classes]
    (folder / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, str(Path(__file__).with_name("_measure.py")), str(folder / "plan.json")]
    environment = os.environ | {"PYTHONPATH": str(package)}
    subprocess.run((["mpirun", "-n", str(ranks)] if ranks > 1 else []) + command, env=environment, check=True)
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    script = ["perf", "script", "-i", str(folder / "perf.data"), "-F", "time,ip,sym,dso"]
    told = samples(subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines())
    for name, window in found["methods"].items():
        if not window:
            raise SystemExit(f"The run of {name} ended before all steps were done, or its listener failed.")
        inside = [each for at, each in told if window["begun"] <= at <= window["ended"]]
        window["shares"] = shares(inside)
    shutil.rmtree(folder)
    return found


def shares(names: Sequence[str]) -> dict[str, float]:
    """The part of each kind."""
    counts = Counter(names)
    return {name: counts[name] / max(len(names), 1) for name in KINDS}


def python_seconds(window: Mapping[str, Any]) -> float:
    """Processor time of a step in Python."""
    return float(window["cpu"] * window["shares"]["Python"])


def rows(found: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[list[str]]:
    """The table, a line a method; with ``before`` the same of another checkout, in two columns."""
    lines = []
    for name, window in found["methods"].items():
        python, evaluations = python_seconds(window), max(window["evaluations"], 1.0)
        line = [name, f"{1e3 * window['cpu']:.3f}", *(f"{100 * window['shares'][each]:.1f}" for each in KINDS)]
        line += [f"{1e6 * python:.0f}", f"{evaluations:.1f}", f"{1e6 * python / evaluations:.0f}"]
        line += [f"{1e6 * window['waited']:.0f}", called(window)]
        if before is not None:
            old = before["methods"][name]
            line += [f"{1e6 * python_seconds(old):.0f}", called(old)]
        lines.append(line)
    return lines


def called(window: Mapping[str, Any]) -> str:
    """Functions in a step."""
    return f"{window['function_calls']:.0f} / {window['own_calls']:.0f}"


def report(name: str, ranks: int, found: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[str]:
    """Heading and table of one problem on some ranks."""
    size = SIZES[name]
    units = [size.features, *size.widths, size.classes]
    variables = sum((a + 1) * b for a, b in pairwise(units))
    heading = f"{variables:,} variables, batches of {size.batch:,} samples, {ranks} rank{'s' if ranks > 1 else ''} of "
    heading += f"{found['threads']} thread{'s' if found['threads'] > 1 else ''}, {size.steps:,} steps"
    head = ["method", "ms a step", *(f"{each} %" for each in KINDS), "Python us a step", "evaluations"]
    head += ["Python us each", "us waiting in MPI", "functions called, all / own"]
    head += ["before: Python us a step", "functions called"] if before is not None else []
    return [f"## {heading}", "", *table(head, rows(found, before)), ""]


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--before", type=Path, help="another checkout, measured too")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(words)
    if shutil.which("perf") is None:
        raise SystemExit("This benchmark samples with perf, which is not on the PATH (package linux-tools or perf).")
    lines = [*explanation(), ""]
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.sizes:
            for ranks in args.ranks:
                given, folder = (SIZES[name], ranks, args.methods), Path(scratch) / f"{name}-{ranks}"
                before = measure(*given, args.before, folder / "before") if args.before else None
                lines += report(name, ranks, measure(*given, REPOSITORY, folder / "now"), before)
    print("\n".join(lines))
    if args.output:
        command = f"python benchmarks/profile/steps.py{spelled(args, 'before')}"
        if args.before:
            command += " --before DIR"
            lines += [f"DIR is a checkout of commit {commit(args.before)}."]
        write_report(args.output, "Where a step's time goes", command, lines)


def commit(checkout: Path) -> str:
    """The commit of a checkout, in short."""
    words = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def explanation() -> list[str]:
    """What the columns are."""
    text = (__doc__ or "").split("\n\n", 2)[2]
    return [*text.splitlines(), "", COLUMNS]


if __name__ == "__main__":
    main()
