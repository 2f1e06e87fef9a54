"""All that is claimed of hpcopt on a GPU, measured on one GPU; no training is begun after seven minutes.

    python benchmarks/gpu/run.py [--root DIR] [--output benchmarks/results/gpu-NAME.md]

Kernels against float64 and against the rates that the device reaches itself; iterations of conjugate gradients recorded
as CUDA graphs and not; one Gauss-Newton product against torch.func and, where it is installed, curvlinops
(``benchmarks/newton/products.py`` says how); reductions by 2 and 4 ranks that share the GPU, through the host and, if a
probe finds that the MPI library can, directly; and seconds to 97 % on MNIST for each method on 1, 2 and 4 ranks, with
``--root``, the folder with MNIST's files. The report is written anew after every part. Without a GPU it says so and
measures nothing; ``--device cpu`` is a dry run with small arrays.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks._report import spelled, table, write_report
from benchmarks._runs import JOBS, trained
from benchmarks.gpu import kernels
from benchmarks.newton import products
from hpcopt.comm.communicator import Communicator
from hpcopt.comm.gpu_probe import probe

BUDGET = 430.0
"""Seconds after which no further run is started."""

RANKS = (1, 2, 4)
TARGET = 0.97
RUN_SECONDS = 25
METHODS = {
    "newton": "mnist-newton.toml",
    "nlcg": "mnist-nlcg.toml",
    "apts": "mnist-apts.toml",
    "trust_region": "mnist-trust-region.toml",
    "sgd": "mnist-sgd.toml",
}
PRODUCT_TARGET = 0.5
"""Of torch.func's time, for a product by factors."""

Section = tuple[str, Callable[[], list[str]]]


def device_line(device: torch.device) -> str:
    """Name, UUID and driver of the device."""
    if device.type != "cuda":
        return "Dry run on the processor: small arrays, whose times say nothing about a GPU."
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,uuid,driver_version,memory.total", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return f"Device: {driver or torch.cuda.get_device_name(device)}; CUDA {torch.version.cuda}."


def product_lines(device: torch.device, rounds: int) -> list[str]:
    """One Gauss-Newton product in several ways."""
    sizes, samples = ([784, 1024, 1024, 10], 4096) if device.type == "cuda" else ([20, 16, 12, 3], 32)
    problem = products.Problem(sizes, samples, torch.float32, Communicator(), device)
    made = products.make(problem)
    difference = products.largest_difference(problem, made)
    times = products.measure(made, rounds, lambda: kernels.wait(device))
    head = ["product", "median ms", "10 %", "90 %", "factors / this (10 to 90 %)", "of processor time", "made once, ms"]
    other = "torch.func jvp + vjp"
    ratio = products.median(products.ratios(times, other))
    met = "met" if ratio <= PRODUCT_TARGET else "NOT met"
    return [
        f"{'-'.join(map(str, sizes))}, tanh, cross-entropy, {samples:,} instances, float32; relative difference of the "
        f"products {difference:.0e}.",
        "",
        *table([*head, "factors pay from, products"], products.rows(times, made)),
        "",
        f"- factors / {other}: {ratio:.2f} (target: at most {PRODUCT_TARGET}): {met}",
    ]


def transport_lines(device: torch.device) -> list[str]:
    """Reductions by ranks that share the device."""
    able, why = probe(Communicator()) if device.type == "cuda" else (False, "no device")
    cells = []
    for ranks in RANKS[1:]:
        command = ["mpirun", "-n", str(ranks), sys.executable, str(Path(__file__).with_name("transport.py"))]
        command += ["--device", device.type, *(["--aware"] if able else [])]
        command += ["--most", "4194304"] if device.type == "cpu" else []
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
        for row in json.loads(done.stdout.strip().splitlines()[-1]):
            rate = row["bytes"] / row["seconds"] / 1e9
            right = "yes" if row["right"] else "NO"
            cells.append(
                [row["way"], str(ranks), f"{row['bytes']:,}", f"{1e3 * row['seconds']:.2f}", f"{rate:.2f}", right]
            )
    head = ["allreduce of device memory", "ranks", "bytes", "ms", "GB/s", "right"]
    return [f"MPI takes device memory: {'yes' if able else 'no'} ({why}).", "", *table(head, cells)]


def training_lines(device: torch.device, root: str | None, left: Callable[[], float]) -> list[str]:
    """Seconds of training until 97 % of MNIST's test images are right."""
    if root is None:
        return ["Not measured: no folder with MNIST was given (--root)."]
    settings = [f"run.device={device.type}", "run.share_gpu=true", f"run.stop.test_accuracy={TARGET}"]
    settings += [f"run.stop.seconds={RUN_SECONDS}", "run.epochs=200", "checkpoint.save=false"]
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        for ranks in RANKS:
            for name, job in METHODS.items():
                if left() < RUN_SECONDS + 15:
                    cells.append([name, str(ranks), "no time left", "", ""])
                    continue
                told = trained(JOBS / job, ranks, Path(folder), f"{name}-{ranks}", root, settings)
                best = told["best"]["test_accuracy"]
                reached = f"{told['seconds']:.1f}" if best >= TARGET else "not reached"
                cells.append([name, str(ranks), reached, f"{100 * best:.2f}", str(told["iterations"])])
    text = (
        f"784-512-256-10; a run ends at {100 * TARGET:.0f} % or after {RUN_SECONDS} s; seconds are those of training."
    )
    return [text, "", *table(["method", "ranks on the GPU", "seconds to 97 %", "best %", "iterations"], cells)]


def sections(device: torch.device, root: str | None, left: Callable[[], float]) -> Iterator[Section]:
    """The parts of the report, in the order in which they are measured."""
    for dtype in (torch.float32, torch.float64):
        yield f"Kernels, {str(dtype).removeprefix('torch.')}", lambda dtype=dtype: kernels.report(device, dtype)
    yield "Iterations in CUDA graphs", lambda: kernels.iteration_lines(device)
    yield "A Gauss-Newton product", lambda: product_lines(device, 51 if device.type == "cuda" else 10)
    yield "Reductions", lambda: transport_lines(device)
    yield "Training on MNIST", lambda: training_lines(device, root, left)


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--root", help="folder with MNIST's files")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no device: torch sees no GPU here, so nothing is measured; --device cpu is a dry run")
        return 0
    start, device = perf_counter(), torch.device(args.device, 0) if args.device == "cuda" else torch.device("cpu")
    lines, output = [device_line(device), ""], args.output
    if output is None and device.type == "cuda":
        name = re.sub(r"\W+", "-", torch.cuda.get_device_name(device).lower()).strip("-")
        output = Path(__file__).parents[1] / "results" / f"gpu-{name}.md"
    for title, measured in sections(device, args.root, lambda: BUDGET - (perf_counter() - start)):
        try:
            found = measured()
        except Exception as error:  # the other parts are worth having all the same
            found = [f"FAILED: {type(error).__name__}: {error}"]
        lines += [f"## {title}", "", *found, ""]
        print("\n".join([f"## {title}", "", *found, ""]), flush=True)
        if output is not None:
            write_report(output, "hpcopt on a GPU", f"python benchmarks/gpu/run.py{spelled(args)}", lines)
    print(f"{perf_counter() - start:.0f} s")
    return int(any(line.startswith("FAILED") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
