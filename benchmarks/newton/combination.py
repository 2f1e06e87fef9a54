"""Newton with and without the combination with the previous direction, and by the tolerance of conjugate gradients.

    python benchmarks/newton/combination.py [--starts 2] [--output benchmarks/results/newton-combination.md]

784-128-64-10, sigmoid, squared loss, 2,000 images of mnist-5k to train and 1,000 to test, 15 incoming weights a unit,
the Gauss-Newton matrix on a fifth of the batch, no preconditioner, 40 full batches. Nothing is timed: products and
losses do not depend on the machine, but for rounding. f counts |o - y|^2 once, as Wang et al. 2018 do, so it is twice
the objective; in its units the first lambda is 1 and the regularisation |w|^2 / (2 l), l the number of images.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, table, write_report
from benchmarks.newton._problem import Outcome, prepared
from hpcopt.comm.communicator import Communicator

SETTINGS = (
    *("run.iterations=40", "parallel.layout=data", "model.init=torch"),
    *("solver.preset=default", "solver.preconditioner=none", "solver.subset_least=1"),
)
VARIANTS: dict[str, list[str]] = {
    "1e-3, without combination": ["solver.cg_tolerance=1e-3", "solver.combine=false"],
    "1e-3": ["solver.cg_tolerance=1e-3"],
    "1e-2 (default)": [],
    "0.1": ["solver.cg_tolerance=0.1"],
}
INCOMING = 15


def sparse(model: torch.nn.Module, seed: int) -> None:
    """Normal numbers for 15 incoming weights of every unit, 0 for all others and the biases (Martens 2010)."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            with torch.no_grad():
                layer.weight.zero_()
                layer.bias.zero_()
                for row in layer.weight:
                    chosen = torch.randperm(len(row), generator=generator)[:INCOMING]
                    row[chosen] = torch.randn(len(chosen), generator=generator)


def run(variant: str, seed: int) -> tuple[float, ...]:
    """Final f, best accuracy, accuracies after 10 and 20 steps, products of conjugate gradients, median step."""
    job = prepared(Communicator(), *SETTINGS, *VARIANTS[variant])
    outcome = Outcome()
    sparse(job.objective.shard.module, seed)
    job.run(None, listeners=[outcome])
    accuracies, products = outcome.accuracies, float(outcome.counts.sum())
    step = float(np.median([row["step_size"] for row in outcome.steps]))
    return outcome.f, float(accuracies.max()), float(accuracies[10]), float(accuracies[20]), products, step


def main() -> None:
    """Run all variants from all starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = []
    for variant in VARIANTS:
        f, best, ten, twenty, products, step = np.mean([run(variant, seed) for seed in range(options.starts)], axis=0)
        rows.append([variant, f"{f:.3f}", f"{best:.1f}", f"{ten:.1f} / {twenty:.1f}", f"{products:.0f}", f"{step:g}"])
        print(*rows[-1], sep="  ", flush=True)
    head = ["cg_tolerance", "f", "best test accuracy, %", "after 10 / 20 steps, %", "products", "median alpha"]
    lines = [f"Means over {options.starts} starts.", "", *table(head, rows)]
    if options.output:
        command = f"python benchmarks/newton/combination.py{spelled(options)}"
        title = "Newton: the combination with the previous direction, and the tolerance of conjugate gradients"
        write_report(options.output, title, command, lines)


if __name__ == "__main__":
    main()
