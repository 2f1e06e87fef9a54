"""What an iteration of APTS costs beside its evaluations: the method's own arithmetic, and its reductions.

    mpirun -n 2 python benchmarks/apts/cost.py --root DIR [--iterations 20] [--output benchmarks/results/apts-cost.md]

784-512-256-10 on MNIST in batches of 10,000 (jobs/mnist-apts.toml), one thread a rank, one core a rank. The time of an
iteration is divided into evaluations (sums of losses and gradients over a rank's samples), communication (waiting
included) and the rest, which is the method's own, and all three by phase. DIR holds MNIST's four files (hpcopt data
fetch mnist --root DIR). ``--set`` as for ``hpcopt run``.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, table, write_report
from hpcopt.comm.communicator import Communicator
from hpcopt.comm.ledger import Ledger
from hpcopt.config import parse_job, read_job
from hpcopt.objective.shard import Shard
from hpcopt.solvers.apts import APTS
from hpcopt.solvers.local_solve import LocalPhase
from hpcopt.train.job import PreparedJob

JOB = Path(__file__).resolve().parents[2] / "jobs" / "mnist-apts.toml"
WARM_UP = 3
OUTSIDE = "between the phases"
PHASES: dict[str, tuple[type, str]] = {
    "loss and gradient at the start": (APTS, "_evaluate"),
    "radius by the next batch": (APTS, "_look_back"),
    "local phase": (LocalPhase, "run"),
    "combined step and its test": (APTS, "_precondition"),
    "global pass": (APTS, "_global_pass"),
}
EVALUATIONS = ("loss_sum", "gradient_sum", "backward_sum")
OWN_SHARE, REDUCTIONS = 5.0, 0.5
"""Aims: percent of an iteration, and reductions of n numbers for each gradient of a batch."""


class Clock:
    """Seconds of this rank by phase, each second in the innermost phase only: all, in evaluations, in communication."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._phases = ledger, [OUTSIDE]
        self.clear()

    def clear(self) -> None:
        """Start from zero, now."""
        self.all: dict[str, float] = defaultdict(float)
        self.evaluating: dict[str, float] = defaultdict(float)
        self.waiting: dict[str, float] = defaultdict(float)
        self._last, self._waited = perf_counter(), self._ledger.totals().seconds_waited

    def book(self) -> None:
        """Add the time since the last call to the phase that is going on."""
        now, waited = perf_counter(), self._ledger.totals().seconds_waited
        self.all[self._phases[-1]] += now - self._last
        self.waiting[self._phases[-1]] += waited - self._waited
        self._last, self._waited = now, waited

    def phase(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time in a phase of its own."""

        def timed(*arguments: Any, **keys: Any) -> Any:
            self.book()
            self._phases.append(name)
            try:
                return function(*arguments, **keys)
            finally:
                self.book()
                self._phases.pop()

        return timed

    def evaluation(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time among the evaluations."""

        def timed(*arguments: Any, **keys: Any) -> Any:
            start = perf_counter()
            try:
                return function(*arguments, **keys)
            finally:
                self.evaluating[self._phases[-1]] += perf_counter() - start

        return timed


def watch(clock: Clock) -> None:
    """Have every phase and every evaluation timed."""
    for name, (owner, method) in PHASES.items():
        setattr(owner, method, clock.phase(name, getattr(owner, method)))
    for method in EVALUATIONS:
        setattr(Shard, method, clock.evaluation(getattr(Shard, method)))


def measure(prepared: PreparedJob, clock: Clock, iterations: int) -> tuple[float, float]:
    """Take ``iterations`` steps after some that warm up. *Collective*.

    Returns:
        Reductions of n numbers, and gradients of a batch or work that equals them, in all.
    """
    objective, solver, batches = prepared.objective, prepared.solver, prepared.sampler.begin()
    state = solver.init(objective)
    for _ in range(WARM_UP):
        state, _ = solver.step(objective, state, batches.next())
    before, sent = replace(objective.work), prepared.comm.ledger.totals().bytes
    clock.clear()
    batch = objective.full_batch
    for _ in range(iterations):
        batch = batches.next()
        clock.book()
        state, _ = solver.step(objective, state, batch)
    clock.book()
    number = state["parameters"].element_size()  # type: ignore[union-attr]
    reductions = (prepared.comm.ledger.totals().bytes - sent) / (number * objective.size)
    work = objective.work.gradient_equivalents - before.gradient_equivalents
    return reductions, work * objective.samples / batch.total


def shares(clock: Clock, comm: Communicator, iterations: int) -> tuple[list[list[str]], float]:
    """The table of phases, in milliseconds an iteration as a mean over the ranks, and the own part in %. *Collective*.

    The own part is that of the rank on which it is largest.
    """
    names = [*PHASES, OUTSIDE]
    mine = [[clock.all[name], clock.evaluating[name], clock.waiting[name]] for name in names]
    everyone = comm.allgather_objects(mine)
    ranks = torch.tensor(everyone, dtype=torch.float64)  # (ranks, phases, 3)
    own = 1 - (ranks[:, :, 1] + ranks[:, :, 2]).sum(1) / ranks[:, :, 0].sum(1)
    mean = torch.cat([ranks.mean(0), ranks.mean(0).sum(0, keepdim=True)]) * 1000 / iterations
    rows = []
    for name, (whole, evaluating, waiting) in zip([*names, "all"], mean.tolist(), strict=True):
        rest = whole - evaluating - waiting
        part = 100 * rest / float(mean[-1, 0])
        rows.append([name, f"{whole:.2f}", f"{evaluating:.2f}", f"{waiting:.2f}", f"{rest:.2f}", f"{part:.2f}"])
    return rows, 100 * float(own.max())


def main() -> None:
    """Measure and report on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    comm = Communicator()
    torch.set_num_threads(1)
    prepared = PreparedJob(parse_job(read_job(JOB), [f"data.root={args.root}", *args.set]), comm)
    clock = Clock(comm.ledger)
    watch(clock)
    reductions, gradients = measure(prepared, clock, args.iterations)
    rows, own = shares(clock, comm, args.iterations)
    if comm.rank == 0:
        head = ["ms an iteration", "all", "evaluations", "communication", "own", "own, % of all"]
        lines = [
            f"784-512-256-10, {prepared.sampler.plan.batch:,} samples in a batch, {comm.size} ranks of one thread,"
            f" {args.iterations} iterations after {WARM_UP}; means over the ranks.",
            "",
            *table(head, rows),
            "",
            f"The method's own part is {own:.2f} % of an iteration on the rank where it is largest (aim: at most"
            f" {OWN_SHARE:g} %). Reductions of n numbers for each gradient of a batch: {reductions / gradients:.3f}"
            f" (aim: at most {REDUCTIONS:g}; gradient descent has 1).",
        ]
        print("\n".join(lines))
        if args.output:
            command = f"mpirun -n {comm.size} python benchmarks/apts/cost.py{spelled(args)}"
            write_report(args.output, "What an iteration of APTS costs", command, lines)


if __name__ == "__main__":
    main()
