"""One launch of ``benchmarks/profile/steps.py``: trains with every method in turn and notes when its steps ran.

    mpirun -n 2 python benchmarks/profile/_measure.py PLAN.json

``perf`` samples the main thread of rank 0 while the steps of a window run; what the samples are is found out by the
script that started this one. After that window the calls of some more steps are counted.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from rich.console import Console

from hpcopt.comm.communicator import Communicator
from hpcopt.comm.launch import choose_threads
from hpcopt.config import Job, parse_job
from hpcopt.objective.problem import Problem
from hpcopt.objective.protocol import Batch
from hpcopt.train.job import PreparedJob
from hpcopt.train.progress import Harmless, PlainProgress
from hpcopt.train.sampler import BatchSequence

PACKAGE = f"{os.sep}hpcopt{os.sep}"


class Sampler:
    """``perf`` on this thread, which samples only between ``begin`` and ``end``."""

    def __init__(self, path: Path, hertz: int) -> None:
        """Start it; it waits."""
        (control, self._write), (self._read, acknowledge) = os.pipe(), os.pipe()
        command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(hertz), "-k", "mono", "-D", "-1"]
        command += [f"--control=fd:{control},{acknowledge}", "-t", str(threading.get_native_id()), "-o", str(path)]
        self._perf = subprocess.Popen(command, pass_fds=(control, acknowledge))

    def begin(self) -> None:
        """Sample from now on."""
        self._tell(b"enable\n")

    def end(self) -> None:
        """Pause."""
        self._tell(b"disable\n")

    def close(self) -> None:
        """Write the samples."""
        self._tell(b"stop\n")
        self._perf.wait()

    def _tell(self, command: bytes) -> None:
        os.write(self._write, command)
        os.read(self._read, 16)


class Calls:
    """Counts Python functions that are called in this thread; calls of compiled functions are not among them."""

    def __init__(self) -> None:
        """Nothing is counted yet."""
        self.count = self.own = 0

    def begin(self) -> None:
        """Count from 0."""
        self.count = self.own = 0
        sys.setprofile(self._hear)

    def end(self) -> tuple[int, int]:
        """Stop; how many there were, and how many of them were functions of this package."""
        sys.setprofile(None)
        return self.count, self.own

    def _hear(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            self.count += 1
            self.own += PACKAGE in frame.f_code.co_filename


class Windows:
    """Samples ``steps`` steps after ``first`` others, and counts the calls in ``counted`` more.

    It is told of every step that begins, those behind the last window among them, and not by the loop's listeners: what
    a step's figures are handed to takes as long as a part of a small step.

    Args:
        sampler: of the processor's time; None to count calls only.
        first, steps, counted: the steps.
        read: the counts of evaluations (in passes), messages and seconds waited since some time.
    """

    def __init__(
        self, sampler: Sampler | None, first: int, steps: int, counted: int, read: Callable[[], dict[str, float]]
    ) -> None:
        self._sampler, self._first, self._last, self._end = sampler, first, first + steps, first + steps + counted
        self._read, self._done = read, -1
        self._calls, self._per_step = Calls(), list[tuple[int, int]]()
        self._begun: dict[str, float] = {}
        self.found: dict[str, float] = {}

    def step_begins(self) -> None:
        """Another step begins."""
        self._done += 1
        if self._done == self._first:
            if self._sampler is not None:
                self._sampler.begin()
            self._begun = self._now()
        elif self._done == self._last:
            self._close()
        elif self._last < self._done <= self._end:
            self._per_step.append(self._calls.end())
        if self._last <= self._done < self._end:
            self._calls.begin()
        elif self._done == self._end:
            # The seldom rest, such as rows that are written, is no part of most steps.
            counts = zip(*self._per_step, strict=True)
            self.found["function_calls"], self.found["own_calls"] = map(statistics.median, counts)

    @contextmanager
    def on_batches(self) -> Iterator[None]:
        """Within it a step begins where a run takes its next batch."""
        take = BatchSequence.next

        def taken(sequence: BatchSequence) -> Batch:
            self.step_begins()
            return take(sequence)

        BatchSequence.next = taken  # type: ignore[method-assign]
        try:
            yield
        finally:
            BatchSequence.next = take  # type: ignore[method-assign]

    def _close(self) -> None:
        now = self._now()
        if self._sampler is not None:
            self._sampler.end()
        steps = self._last - self._first
        self.found = {key: (now[key] - self._begun[key]) / steps for key in now if key != "ended"}
        self.found |= {"steps": steps, "begun": self._begun["ended"], "ended": now["ended"]}

    def _now(self) -> dict[str, float]:
        return self._read() | {"cpu": time.thread_time(), "wall": time.perf_counter(), "ended": time.monotonic()}


def counts_of(objective: Problem) -> dict[str, float]:
    """What ``Windows`` reads of a run."""
    work, totals = objective.work, objective.comm.ledger.totals()
    passes = work.values + work.gradients + work.curvature_products
    return {"waited": totals.seconds_waited, "messages": totals.calls, "passes": passes}


def train(
    job: Job, comm: Communicator, sampler: Sampler | None, steps: Sequence[int], folder: Path
) -> dict[str, float]:
    """A run as ``hpcopt run`` makes it, with its record, log and checkpoints. *Collective*."""
    prepared = PreparedJob(job, comm)
    display = Harmless()
    display.start(lambda: PlainProgress(Console(file=io.StringIO()), 1))
    windows = Windows(sampler, *steps, lambda: counts_of(prepared.objective))
    with windows.on_batches() if comm.rank == 0 else nullcontext():
        prepared.run(folder, fresh=True, listeners=[display] if comm.rank == 0 else [], watched=True)
    found = windows.found
    if found:
        # A pass is one evaluation of all samples.
        found["evaluations"] = found.pop("passes") * prepared.objective.samples / prepared.sampler.plan.batch
    return found


def train_by_hand(
    plan: dict[str, Any], comm: Communicator, sampler: Sampler | None, steps: Sequence[int]
) -> dict[str, float]:
    """As many steps of gradient descent as one writes them with torch and mpi4py. *Collective*."""
    # Here, since it puts its own checkout first, and hpcopt may have to be another one's.
    from benchmarks.sgd.step import hand_step

    with np.load(plan["data"]) as data:
        inputs, targets = (torch.from_numpy(data[key][comm.rank :: comm.size]) for key in "xy")
    given = argparse.Namespace(widths=plan["widths"], batch=plan["batch"] // comm.size)
    step = hand_step(inputs, targets, given)
    windows = Windows(sampler, *steps, lambda: {"waited": 0.0, "messages": 0.0})
    for _ in range(sum(steps) + 1):
        if comm.rank == 0:
            windows.step_begins()
        step()
    return windows.found | {"evaluations": 1.0} if windows.found else {}


def main() -> None:
    """Train with every method of the plan, and write on rank 0 what was found."""
    plan: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    comm, folder = Communicator(), Path(plan["folder"])
    threads = choose_threads(comm).threads
    sampler = Sampler(folder / "perf.data", plan["hertz"]) if comm.rank == 0 and plan["hertz"] else None
    found: dict[str, Any] = {"threads": threads, "methods": {}}
    for name, given in plan["methods"].items():
        steps = given["first"], given["steps"], given["counted"]
        if name == plan["by_hand"]:
            found["methods"][name] = train_by_hand(plan, comm, sampler, steps)
        else:
            found["methods"][name] = train(parse_job(given["job"]), comm, sampler, steps, folder / name)
    if sampler is not None:
        sampler.close()
    if comm.rank == 0:
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
