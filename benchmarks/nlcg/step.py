"""What one step of the published method costs beyond its gradient, in passes over the n numbers of w.

    python benchmarks/nlcg/step.py [--numbers 25557032] [--output benchmarks/results/nlcg-step.md]

A pass is the time in which memory gives n numbers and takes n, one read and one write of w: a third of what two updates
of one vector by another take, which read four times n numbers and write two. The gradient is that of a quadratic with a
diagonal Hessian, of which the same evaluation without a step is taken away. Each step is made with the sweeps in C, if
they were compiled (in a checkout by `python setup.py build_ext --inplace`), and with torch's. Steps and what they are
measured by go in turns, so that a noisy machine disturbs them alike; figures are medians over blocks.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, table, write_report
from hpcopt.kernels import choice
from hpcopt.objective import vectors
from hpcopt.objective.protocol import Batch, Objective, Vector
from hpcopt.solvers.registry import make_solver

FULL = Batch(None, 1, 1)
AIM = 9.0
"""Passes beyond gradient and reduction that a step of the published method may cost."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "nlcg paper, fr": ("nlcg", {"preset": "paper", "weight_average": 0.0}),
    "nlcg paper, fr, average of the weights": ("nlcg", {"preset": "paper"}),
    "nlcg paper, pr": ("nlcg", {"preset": "paper", "beta": "pr", "weight_average": 0.0}),
    "nlcg control without preconditioner": ("nlcg", {"step_rule": "control", "preconditioner": "identity"}),
    "sgd, momentum 0.9": ("sgd", {"momentum": 0.9, "learning_rate": 0.01}),
    "adam": ("adam", {}),
}


class Quadratic(vectors.OwnVectors):
    """1/2 sum_i c_i w_i^2 in one process; the gradient is written to the same memory every time."""

    deterministic = True

    def __init__(self, numbers: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        self.size = numbers
        self.start = torch.randn(numbers, generator=generator, dtype=dtype)
        self.curvatures = torch.rand(numbers, generator=generator, dtype=dtype).add_(0.1)
        self.buffer = torch.empty_like(self.start)

    def initial_vector(self) -> Vector:
        """A copy of the start."""
        return self.start.clone()

    def value_and_gradient(self, w: Vector, batch: Batch) -> tuple[float, Vector]:
        """A loss that never rises, and the gradient."""
        return 1.0, torch.mul(self.curvatures, w, out=self.buffer)

    def release(self, gradient: Vector) -> None:
        """Its memory is used again anyway."""

    def parameter_tensors(self) -> list[tuple[slice, torch.Size]]:
        """One tensor."""
        return [(slice(0, self.size), torch.Size([self.size]))]


def stepping(problem: Quadratic, name: str, options: dict[str, Any], kernels: choice.Choice) -> Callable[[], object]:
    """One step of a method with these kernels at each call."""
    objective, solver = cast(Objective, problem), make_solver(name, options, 200.0)
    state = solver.init(objective)

    def step() -> object:
        with patch.object(choice, "_on_processor", lambda: kernels):
            return solver.step(objective, state, FULL)

    return step


def measured(work: dict[str, Callable[[], object]], blocks: int, length: int) -> dict[str, list[float]]:
    """Seconds a call in each block, the variants in turn; the first block warms up."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for block in range(blocks + 1):
        for name, call in work.items():
            start = time.perf_counter()
            for _ in range(length):
                call()
            if block:
                times[name].append((time.perf_counter() - start) / length)
    return times


def compared(
    problem: Quadratic, work: dict[str, Callable[[], object]], blocks: int, length: int
) -> tuple[list[list[str]], dict[tuple[str, str], float], list[float]]:
    """The rows of all variants with all sweeps, the passes of each, and the seconds of a pass in each block."""
    kernels = {"torch": choice.TORCH}
    if choice._on_processor().sweeps is not choice.TORCH.sweeps:
        kernels = {"C": choice._on_processor()} | kernels
    variants = {(name, made): (*given, kernels[made]) for name, given in VARIANTS.items() for made in kernels}
    work = work | {"/".join(key): stepping(problem, *given) for key, given in variants.items()}
    times = measured(work, blocks, length)
    passes = [seconds / 3 for seconds in times["memory"]]  # of six sweeps, two are one pass
    rows, counts = [], {}
    for key in variants:
        own = times["/".join(key)]
        beyond = [step - gradient for step, gradient in zip(own, times["gradient"], strict=True)]
        figures = [statistics.median(each) for each in (own, beyond)]
        counts[key] = statistics.median(each / one for each, one in zip(beyond, passes, strict=True))
        rows.append([*key, *(f"{1e3 * seconds:.1f}" for seconds in figures), f"{counts[key]:.1f}"])
    return rows, counts, passes


def verdicts(counts: dict[tuple[str, str], float]) -> list[str]:
    """Whether the aim is met by the published method, with each of the sweeps."""
    lines = []
    for made in dict.fromkeys(made for _, made in counts):
        most = max(count for (name, own), count in counts.items() if own == made and name.startswith("nlcg paper"))
        met = "met" if most <= AIM else "NOT met"
        lines.append(f"- At most {AIM:.0f} passes by the published method, sweeps in {made}: {met}, {most:.1f}.")
    return lines


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numbers", type=int, default=25_557_032, help="n; the default is ResNet-50's")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--length", type=int, default=5, help="steps a block")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    problem = Quadratic(args.numbers, getattr(torch, args.dtype))
    x, y = problem.start.clone(), problem.start.mul(1e-3)
    work: dict[str, Callable[[], object]] = {
        "memory": lambda: (x.lerp_(y, 0.01), y.lerp_(x, 0.01)),
        "gradient": lambda: problem.value_and_gradient(x, FULL),
    }
    rows, counts, passes = compared(problem, work, args.blocks, args.length)
    bandwidth = 2 * problem.start.nbytes / statistics.median(passes) / 1e9
    lines = [
        f"{args.numbers:,} numbers of {args.dtype}, {torch.get_num_threads()} thread(s), one process; "
        f"{args.blocks} blocks of {args.length} steps each. Memory: {bandwidth:.1f} GB/s, reads and writes together.",
        "",
        *table(["step", "sweeps", "ms", "ms beyond the gradient", "passes beyond the gradient"], rows),
        "",
        *verdicts(counts),
    ]
    print("\n".join(lines))
    if args.output:
        command = f"OMP_NUM_THREADS={torch.get_num_threads()} python benchmarks/nlcg/step.py{spelled(args)}"
        write_report(args.output, "One step of the published NLCG", command, lines)


if __name__ == "__main__":
    main()
