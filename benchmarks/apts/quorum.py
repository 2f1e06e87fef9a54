"""APTS with one rank slowed: what a straggler costs, and what is left of it with a quorum.

    python benchmarks/apts/quorum.py [--ranks 4] [--seconds 0.2] [--output benchmarks/results/apts-quorum.md]

Starts one ``mpirun`` for each quorum; the last rank waits before every local iteration. The figures are made of these
waits, so more ranks than cores are fine (Open MPI: ``export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
OMPI_MCA_mpi_yield_when_idle=true``). The data, 1,797 handwritten digits, come with a package; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, table, write_report
from benchmarks._runs import trained

JOB = """
[run]
device = "cpu"
evaluate_every = 1000
[data]
source = "digits"
batch = "full"
[model]
widths = [64]
[solver]
name = "apts"
"""
CASES = (("no rank slowed", None, False), ("no quorum", None, True), ("0.75", 0.75, True), ("0.5", 0.5, True))


def run(folder: Path, quorum: float | None, slowed: bool, args: argparse.Namespace) -> dict[str, Any]:
    """What ``hpcopt inspect --json`` says of a run."""
    settings = [f"run.iterations={args.iterations}", f"run.seed={args.seed}"]
    if slowed:
        settings += [f"debug.slow_rank={args.ranks - 1}", f"debug.slow_seconds={args.seconds}"]
    if quorum is not None:
        settings.append(f"parallel.quorum={quorum}")
    job = folder / "job.toml"
    job.write_text(JOB, encoding="utf-8")
    return trained(job, args.ranks, folder, f"run-{quorum}-{slowed}", str(folder), settings)


def row(name: str, told: dict[str, Any]) -> list[str]:
    """One line of the table."""
    return [
        name,
        f"{told['seconds'] / told['iterations']:.2f}",
        ", ".join(f"{mean:.1f}" for mean in told["local_iterations"]),
        f"{told['final']['train_loss']:.2e}",
        f"{100 * told['final']['test_accuracy']:.2f}",
        f"{told['work']['gradient_equivalents']:.0f}",
    ]


def main() -> None:
    """Train with each quorum and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hpcopt-quorum-") as folder:
        told = {name: run(Path(folder), quorum, slowed, args) for name, quorum, slowed in CASES}
    head = ["quorum", "s an iteration", "local iterations by rank", "train loss", "test accuracy, %", "gradients"]
    lines = [
        f"Digits, 64-64-10, full batch, float32, {args.iterations} iterations on {args.ranks} ranks, seed {args.seed}.",
        f"The last rank waits {args.seconds} s before every local iteration. Gradients: all evaluations together in "
        "passes over the training set. The times are about the waits; what is left of them depends on the cores.",
        "",
        *table(head, [row(name, result) for name, result in told.items()]),
    ]
    print("\n".join(lines))
    if args.output:
        command = f"python benchmarks/apts/quorum.py{spelled(args)}"
        write_report(args.output, "APTS with a straggling rank", command, lines)


if __name__ == "__main__":
    main()
