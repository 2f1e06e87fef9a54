"""Distributed training over plain MPI with methods that first-order trainers cannot host.

The public names, each imported when it is first asked for:

    comm = hpcopt.Communicator(MPI.COMM_WORLD)
    objective = hpcopt.DataParallelObjective(model, "cross_entropy", inputs, targets, comm)     # this rank's shard
    result = hpcopt.minimize(objective, hpcopt.solvers.TrustRegion(), epochs=20, run_dir="runs/a")
    optimizer = hpcopt.optim.APTS(model.parameters(), comm=comm);  loss = optimizer.step(closure)
    optimizer = hpcopt.optim.NLCG(model, loss_fn, comm=comm);  loss = optimizer.step(inputs, targets)     # or Newton
    run = hpcopt.open_run("runs/a");  run.history;  run.checkpoint("best").parameters           # no MPI, no torch
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Communicator": "hpcopt.comm.communicator:Communicator",
    "DataParallelObjective": "hpcopt.objective.data_parallel:DataParallelObjective",
    "HpcoptError": "hpcopt.errors:HpcoptError",
    "UsageError": "hpcopt.errors:UsageError",
    "VariableBlockObjective": "hpcopt.objective.variable_blocks:VariableBlockObjective",
    "abort_on_exception": "hpcopt.comm.launch:abort_on_exception",
    "minimize": "hpcopt.train.minimize:minimize",
    "open_run": "hpcopt.analysis.history:open_run",
    "optim": "hpcopt.optim",
    "solvers": "hpcopt.solvers",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    """Import a public name: ``import hpcopt`` alone loads neither torch nor MPI."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hpcopt' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    """The public names and what the module has itself."""
    return sorted({*globals(), *_PUBLIC})
