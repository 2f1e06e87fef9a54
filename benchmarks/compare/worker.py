"""Make the runs of a plan in one process a rank: those of hpcopt and those of what a user would take instead.

    mpirun -n 2 python benchmarks/compare/worker.py PLAN.json

Started by compare.py, which writes the plan. A run that is finished is left alone.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._gloo import start_gloo
from benchmarks._runs import OWN_RECORD, finished
from benchmarks.compare.baselines import BASELINES, Differentiated, Marquardt
from hpcopt.comm.communicator import Communicator
from hpcopt.comm.launch import choose_threads
from hpcopt.config import parse_job
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.train.evaluation import Evaluator
from hpcopt.train.job import PreparedJob

LOOKS = 30
"""Evaluations of a run of a baseline, about."""


class Trial:
    """One run of a baseline: its steps, what they cost, and its record.

    Args:
        prepared: data, network, first weights and batches, as hpcopt has them.
        entry: of the plan.
        comm: the ranks.
    """

    def __init__(self, prepared: PreparedJob, entry: dict[str, Any], comm: Communicator) -> None:
        objective = prepared.objective
        assert isinstance(objective, DataParallelObjective)
        baseline, shard = BASELINES[entry["method"]], objective.shard
        module = copy.deepcopy(shard.module)
        data = shard.inputs, shard.targets
        self._steps: Differentiated | Marquardt
        if baseline.make is None:
            self._steps = Marquardt(entry["rate"], module, data)
        else:
            decay = objective.weight_decay
            self._steps = Differentiated(baseline, entry["rate"], module, data, decay, comm.size)
        self._evaluate, self._samples = Evaluator(objective, prepared.test), objective.samples
        self._batches, self._comm, self._entry = prepared.sampler.begin(), comm, entry
        self._falls, self._seconds = baseline.falls, 0.0
        self.history: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        """Steps until the work is done or numbers are not finite; the record. *Collective*."""
        budget = self._entry["budget"]
        finite, looked = self._look(), 0.0
        while finite and self._work < budget * (1 - 1e-9):
            start = time.perf_counter()
            if self._falls and isinstance(self._steps, Differentiated):
                self._steps.set_rate(self._entry["rate"] * (1 - self._work / budget))
            self._steps.step(self._batches.next())
            self._seconds += time.perf_counter() - start
            if self._work >= min(budget, looked + budget / LOOKS) * (1 - 1e-9):
                finite, looked = self._look(), self._work
        return {
            "status": "finished" if finite else "diverged",
            "seconds": self.history[-1]["seconds"],
            "work": {"gradient_equivalents": self.history[-1]["gradient_equivalents"]},
            "history": self.history,
        }

    @property
    def _work(self) -> float:
        return self._steps.work / self._samples

    def _look(self) -> bool:
        """Add an evaluation to the history; whether the loss is finite. *Collective*."""
        w = torch.cat([p.detach().flatten() for p in self._steps.parameters])
        found = vars(self._evaluate(w))
        (seconds,) = self._comm.reduce_scalars([self._seconds], op="max")
        self._seconds = seconds
        facts = {"gradient_equivalents": self._work, "epoch": self._batches.epochs, "seconds": seconds, **found}
        finite = math.isfinite(found["train_loss"])
        self.history.append({key: value if math.isfinite(value) else None for key, value in facts.items()})
        self._comm.barrier()
        return finite


def make(entry: dict[str, Any], comm: Communicator) -> None:
    """One run of the plan, unless it is there. *Collective*."""
    directory = Path(entry["directory"])
    if comm.broadcast_object(finished(directory)):
        return
    prepared = PreparedJob(parse_job("", entry["settings"], name=directory.name), comm)
    if entry["method"] not in BASELINES:
        prepared.run(directory, fresh=True)
        return
    told = Trial(prepared, entry, comm).run()
    if comm.rank == 0:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / OWN_RECORD).write_text(json.dumps(told), encoding="utf-8")
        (directory / "status.json").write_text(json.dumps({"status": told["status"]}), encoding="utf-8")


def main() -> None:
    """Make all runs of the plan, in its order."""
    comm = Communicator()
    choose_threads(comm)
    if comm.size > 1:
        start_gloo()
    for entry in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        make(entry, comm)
        if comm.rank == 0:
            print(Path(entry["directory"]).name, flush=True)
    if comm.size > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
